// Feature maps phi of the global term. A new map is one function here and one line in the table.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "matmul.h"

namespace lineahead {

// Writes phi of `rows` rows x[., dim] (row stride ldx) to out[rows, F], F = width(dim, columns).
// weight is [dim, columns], or unused.
struct FeatureMap {
  const char* name;
  int (*width)(int dim, int columns);
  void (*apply)(const float* x, int rows, int ldx, int dim, const float* weight, int columns, float* out);
};

inline int identity_width(int dim, int) { return dim; }

inline void identity(const float* x, int rows, int ldx, int dim, const float*, int, float* out) {
  for (int i = 0; i < rows; ++i) std::memcpy(out + (size_t)i * dim, x + (size_t)i * ldx, dim * sizeof(float));
}

inline int hedgehog_width(int, int columns) { return 2 * columns; }

// softmax(x) and softmax(-x) of one row, the first in place of x.
inline void two_softmaxes(float* x, float* negated, int n) {
  Vec high = splat(-INFINITY), low = splat(INFINITY);
  for (int i = 0; i < n; i += kWidth) {
    high = maximum(high, n - i >= kWidth ? load(x + i) : load_part(x + i, n - i, -INFINITY));
    low = minimum(low, n - i >= kWidth ? load(x + i) : load_part(x + i, n - i, INFINITY));
  }
  const float top = highest(high), bottom = -highest(-low);
  Vec up{}, down{};
  for (int i = 0; i < n; i += kWidth) {
    const int part = n - i;
    if (part >= kWidth) {
      const Vec v = load(x + i), a = exponential(v - top), b = exponential(bottom - v);
      store(x + i, a), store(negated + i, b);
      up += a, down += b;
    } else {
      const Vec a = exponential(load_part(x + i, part, -INFINITY) - top);
      const Vec b = exponential(bottom - load_part(x + i, part, INFINITY));
      store_part(x + i, a, part), store_part(negated + i, b, part);
      up += a, down += b;
    }
  }
  const float first = 1.0f / sum(up), second = 1.0f / sum(down);
  for (int i = 0; i < n; ++i) x[i] *= first;
  for (int i = 0; i < n; ++i) negated[i] *= second;
}

// phi(x) = [softmax(x W), softmax(-x W)]: Zhang et al., 2024, arXiv:2402.04347, section 4.2.
inline void hedgehog(const float* x, int rows, int ldx, int dim, const float* weight, int columns, float* out) {
  const int width = 2 * columns;
  multiply(rows, columns, dim, Strided{x, ldx, 1}, weight, columns, nullptr, out, width);
  for (int i = 0; i < rows; ++i) two_softmaxes(out + (size_t)i * width, out + (size_t)i * width + columns, columns);
}

constexpr FeatureMap kFeatureMaps[] = {
    {"identity", identity_width, identity},
    {"hedgehog", hedgehog_width, hedgehog},
};

// The map called `name`, or null.
inline const FeatureMap* find_feature_map(const std::string& name) {
  for (const FeatureMap& map : kFeatureMaps)
    if (name == map.name) return &map;
  return nullptr;
}

}  // namespace lineahead
