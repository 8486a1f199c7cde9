// A score with its place as one 64-bit key: the score made comparable above, the complement of its place below, so that the largest
// key is the largest score and, among equals, the first. A score that is not a number is larger than all numbers.
#pragma once

#include "device.cuh"

namespace lineahead::cuda {

__device__ __forceinline__ uint64_t token_key(float score, int place) {
  const uint32_t bits = score != score ? 0x7fffffffu : float_to_bits(score + 0.0f);  // no negative zero
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t)order << 32 | (uint32_t)~place;
}

}  // namespace lineahead::cuda
