// Local kernels, and the gains by which a row's terms enter the output: local_kernels/ and blend.py.
#pragma once

#include "layout.h"
#include "numbers.cuh"

namespace lineahead::cuda {

constexpr float kLargestCosine = 1 - 1e-6f;  // local_kernels/yoso.py

// The weight of a local key from its score; `peak` is the row's largest.
__device__ __forceinline__ float local_weight(int local, float score, float peak) {
  if (local == kSoftmax) return __expf(score - peak);
  if (local == kYoso) {  // (1 - acos(x) / pi)^8: Zeng et al., 2021, arXiv:2111.09714
    const float p = 1 - acosf(fminf(fmaxf(score, -kLargestCosine), kLargestCosine)) * 0.318309886183790672f;
    const float square = p * p, fourth = square * square;
    return fourth * fourth;
  }
  if (local == kNoLocal) return 0;
  const float x = fmaxf(score, 0.0f);  // relu2: Hua et al., 2022, arXiv:2202.10447
  return x * x;
}

// A normalizer of the output row needs two sums apart: what it divides, and the rest.
enum class Part { kWhole, kRow, kRest };

struct Gains {
  float near, far, conv;  // of local weights; of far weights and phi(q) S; of the convolution
};

// near and far are the sums of the row's weights, far with phi(q) z.
__device__ __forceinline__ Gains gains(const Settings& settings, Part part, float alpha, float local_scale, float near, float far) {
  if (part == Part::kRow)
    return settings.normalizes == kGlobal  ? Gains{0, 1, 0}
           : settings.normalizes == kLocal ? Gains{1, 0, 0}
                                           : Gains{local_scale, alpha, 0};
  if (part == Part::kRest)
    return Gains{settings.normalizes == kGlobal ? local_scale : 0, settings.normalizes == kLocal ? alpha : 0, 1};
  if (settings.normalizer != kDenominator) return {local_scale, alpha, 1};
  if (settings.normalizes == kGlobal) return {local_scale, alpha / (fmaxf(far, settings.floor) + settings.eps), 1};
  if (settings.normalizes == kLocal) return {local_scale / (near + settings.eps), alpha, 1};
  float total = fmaf(local_scale, near, alpha * far);
  if (settings.floor > 0) total = fmaxf(total, settings.floor);
  const float inverse = 1 / (total + settings.eps);
  return {local_scale * inverse, alpha * inverse, 1};
}

// What the normalizer of an output row multiplies it by; `squares` is its squared length.
__device__ __forceinline__ float row_factor(const Settings& settings, float squares, int width) {
  return 1 / sqrtf((settings.normalizer == kRms ? squares / width : squares) + settings.eps);
}

}  // namespace lineahead::cuda
