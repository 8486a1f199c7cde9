// One SIMD register of floats, in the vector extension that GCC and Clang share; its width follows the compile flags.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace lineahead {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
#endif
constexpr int kWidth = kVectorBytes / 4;

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));  // lanes are 0 or -1

inline int padded(int n) { return (n + kWidth - 1) / kWidth * kWidth; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Mask load(const int32_t* p) {
  Mask v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes of p, the others `fill`.
inline Vec load_part(const float* p, int n, float fill) {
  float lane[kWidth];
  for (int i = 0; i < kWidth; ++i) lane[i] = i < n ? p[i] : fill;
  return load(lane);
}

inline void store_part(float* p, Vec v, int n) {
  float lane[kWidth];
  store(lane, v);
  for (int i = 0; i < n; ++i) p[i] = lane[i];
}

inline Vec splat(float x) { return x - Vec{}; }

inline Vec select(Mask where, Vec yes, Vec no) { return (Vec)((where & (Mask)yes) | (~where & (Mask)no)); }

inline Vec maximum(Vec a, Vec b) { return select((Mask)(a > b), a, b); }

inline Vec minimum(Vec a, Vec b) { return select((Mask)(a < b), a, b); }

inline float sum(Vec v) {
  float lane[kWidth];
  store(lane, v);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

inline float highest(Vec v) {
  float lane[kWidth];
  store(lane, v);
  float best = lane[0];
  for (int i = 1; i < kWidth; ++i) best = lane[i] > best ? lane[i] : best;
  return best;
}

// Pairwise sums across two registers: one stage of the tree that turns kWidth registers into one register of their sums.
template <int kStep, size_t... I>
inline Vec pair_sums(Vec a, Vec b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  const Vec low = __builtin_shufflevector(a, b, ((I & kStep) ? kWidth + I - kStep : I)...);
  const Vec high = __builtin_shufflevector(a, b, ((I & kStep) ? kWidth + I : I + kStep)...);
#else
  const Vec low = __builtin_shuffle(a, b, Mask{((I & kStep) ? kWidth + I - kStep : I)...});
  const Vec high = __builtin_shuffle(a, b, Mask{((I & kStep) ? kWidth + I : I + kStep)...});
#endif
  return low + high;
}

template <int kStep>
inline Vec tree_sums(const Vec* v) {  // v[0 .. kWidth / kStep * ...]: lane i of the result is sum(v[i])
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    return pair_sums<kStep>(tree_sums<kStep / 2>(v), tree_sums<kStep / 2>(v + kStep),
                            std::make_index_sequence<kWidth>{});
  }
}

// Lane i of the result is the sum of the lanes of v[i], for i in [0, kWidth).
inline Vec lane_sums(const Vec* v) { return tree_sums<kWidth / 2>(v); }

// e^x within 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor series of e^r up to r^7 (remainder < 6e-9), scaled by 2^n.
// Zero below -87, where the result would be denormal; x must not exceed 88.
inline Vec exponential(Vec x) {
  const float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
  const Mask alive = (Mask)(x >= -87.0f);
  const Vec bounded = select(alive, x, Vec{});
  const Vec n = (bounded * 1.44269504f + kToInteger) - kToInteger;
  Vec r = bounded - n * 0.693359375f;  // ln 2 in two parts, the first exact in a product with n
  r = r - n * -2.12194440e-4f;
  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  const Vec series = p * (r * r) + r + 1.0f;
  const Mask power = (__builtin_convertvector(n, Mask) + 127) << 23;
  return select(alive, series * (Vec)power, Vec{});
}

}  // namespace lineahead
