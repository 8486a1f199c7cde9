// Dense products of small float32 matrices: C = A B with B's rows contiguous, and rows of dot products.
#pragma once

#include "simd.h"

namespace lineahead {

// A matrix whose element (i, j) is at data[i * row + j * column].
struct Strided {
  const float* data;
  int row;
  int column;
};

constexpr int kTileRows = kRegisters == 32 ? 6 : 4;
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;

// One tile: kRows rows and kVectors registers of columns; `from` (may be null) is added and may be `to` itself.
template <int kRows, int kVectors>
inline void tile(int depth, Strided a, const float* b, int ldb, const float* from, float* to, int ldc) {
  Vec total[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) total[i][j] = from ? load(from + i * ldc + j * kWidth) : Vec{};
  for (int k = 0; k < depth; ++k) {
    Vec right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + (size_t)k * ldb + j * kWidth);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = splat(a.data[(size_t)i * a.row + (size_t)k * a.column]);
      for (int j = 0; j < kVectors; ++j) total[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) store(to + i * ldc + j * kWidth, total[i][j]);
}

// The last columns, fewer than one register of them.
template <int kRows>
inline void tile_edge(int columns, int depth, Strided a, const float* b, int ldb, const float* from, float* to, int ldc) {
  for (int i = 0; i < kRows; ++i) {
    float total[kWidth] = {};
    for (int j = 0; j < columns; ++j) total[j] = from ? from[i * ldc + j] : 0.0f;
    for (int k = 0; k < depth; ++k) {
      const float left = a.data[(size_t)i * a.row + (size_t)k * a.column];
      for (int j = 0; j < columns; ++j) total[j] += left * b[(size_t)k * ldb + j];
    }
    for (int j = 0; j < columns; ++j) to[i * ldc + j] = total[j];
  }
}

template <int kRows>
inline void row_panel(int columns, int depth, Strided a, const float* b, int ldb, const float* from, float* to, int ldc) {
  constexpr int kFull = kTileVectors * kWidth;
  const auto at = [from](int j) { return from ? from + j : nullptr; };
  int j = 0;
  for (; j + kFull <= columns; j += kFull) tile<kRows, kTileVectors>(depth, a, b + j, ldb, at(j), to + j, ldc);
  for (; j + kWidth <= columns; j += kWidth) tile<kRows, 1>(depth, a, b + j, ldb, at(j), to + j, ldc);
  if (j < columns) tile_edge<kRows>(columns - j, depth, a, b + j, ldb, at(j), to + j, ldc);
}

// to[rows, columns] = from + A[rows, depth] B[depth, columns]; from may be null (zero) or equal to `to`.
inline void multiply(int rows, int columns, int depth, Strided a, const float* b, int ldb, const float* from, float* to,
                     int ldc) {
  int i = 0;
  const auto next = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    const Strided part{a.data + (size_t)i * a.row, a.row, a.column};
    row_panel<kRows>(columns, depth, part, b, ldb, from ? from + (size_t)i * ldc : nullptr, to + (size_t)i * ldc, ldc);
    i += kRows;
  };
  while (i + kTileRows <= rows) next(std::integral_constant<int, kTileRows>{});
  while (i + 3 <= rows) next(std::integral_constant<int, 3>{});
  while (i < rows) next(std::integral_constant<int, 1>{});
}

inline float dot(const float* a, const float* b, int n) {
  Vec total{};
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) total += load(a + i) * load(b + i);
  float result = sum(total);
  for (; i < n; ++i) result += a[i] * b[i];
  return result;
}

// to[i, j] = a[i] . b[j] for rows i and keys j; `to` must have room for padded(keys) columns, the extra ones are filler.
inline void dot_rows(int rows, int keys, int depth, const float* a, int lda, const float* b, int ldb, float* to, int ldc) {
  const int whole = depth / kWidth * kWidth;
  for (int j = 0; j < keys; j += kWidth) {
    const float* key[kWidth];
    for (int n = 0; n < kWidth; ++n) key[n] = b + (size_t)(j + n < keys ? j + n : keys - 1) * ldb;
    for (int i = 0; i < rows; ++i) {
      const float* left = a + (size_t)i * lda;
      Vec part[kWidth] = {};
      for (int k = 0; k < whole; k += kWidth) {
        const Vec x = load(left + k);
        for (int n = 0; n < kWidth; ++n) part[n] += x * load(key[n] + k);
      }
      Vec total = lane_sums(part);
      for (int k = whole; k < depth; ++k) {
        float lane[kWidth];
        for (int n = 0; n < kWidth; ++n) lane[n] = key[n][k];
        total += left[k] * load(lane);
      }
      store(to + (size_t)i * ldc + j, total);
    }
  }
}

}  // namespace lineahead
