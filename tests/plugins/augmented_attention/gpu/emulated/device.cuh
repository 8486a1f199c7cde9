// Stands in for the kernels' device.cuh: the threads of a block are fibers of one CPU thread, taken in an order that the
// environment variable EMULATED_ORDER picks, each running until it has to wait for others. Blocks run one after another, so a block
// that overwrites what another has still to read is found out; so is a barrier that not all threads reach.
#pragma once

#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace lineahead::cuda {

struct Fiber {
  uint3 block;
  dim3 grid;
  int thread;
  char* shared;
};
extern Fiber* current;

void wait_for_block();
float exchange(float mine, int mask);
unsigned vote(bool mine);

inline int thread_index() { return current->thread; }
inline uint3 block_index() { return current->block; }
inline dim3 grid_size() { return current->grid; }
inline char* shared_memory() { return current->shared; }
inline void sync_block() { wait_for_block(); }
inline void sync_warp() { exchange(0, 0); }
inline float shuffle_xor(float x, int mask) { return exchange(x, mask); }
inline unsigned ballot(bool mine) { return vote(mine); }
inline int bit_count(unsigned bits) { return __builtin_popcount(bits); }
inline int count_one(int* shared) { return (*shared)++; }
// Four 8 x 8 blocks of 16-bit numbers, as ldmatrix gives them.
void read_blocks(uint32_t (&to)[4], const void* row, bool transposed);
inline void load_matrices(uint32_t (&to)[4], const void* row) { read_blocks(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { read_blocks(to, row, true); }
inline void copy_async(void* to, const void* from) { *static_cast<uint4*>(to) = *static_cast<const uint4*>(from); }
inline void wait_copies() {}
inline void prefetch(const void*) {}
inline float4 load_once(const float* from) { return *reinterpret_cast<const float4*>(from); }
inline uint4 fetch16(const void* from) { return *static_cast<const uint4*>(from); }
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= (uint32_t)(bytes >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline uint32_t pack(float low, float high, __half) {
  const __half pair[2] = {__float2half_rn(low), __float2half_rn(high)};
  uint32_t word;
  std::memcpy(&word, pair, 4);
  return word;
}
inline uint32_t pack(float low, float high, __nv_bfloat16) { return (uint32_t)__float2bfloat16_rn(high).bits << 16 | __float2bfloat16_rn(low).bits; }
inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (bits + 0x1000) & ~0x1fffu;
}
// One operand of a product as its lanes hold it: words, each of `per` numbers that `read` unpacks.
void warp_product(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int per, float (*read)(uint32_t word, int i));
inline float half_of(uint32_t word, int i) {
  const uint16_t bits = word >> 16 * i;
  __half x;
  std::memcpy(&x, &bits, 2);
  return __half2float(x);
}
inline float bfloat_of(uint32_t word, int i) { return __bfloat162float({(uint16_t)(word >> 16 * i)}); }
inline float tf32_of(uint32_t word, int) { return bits_to_float(word & ~0x1fffu); }
inline void unpack(uint32_t word, float& low, float& high, __half) { low = half_of(word, 0), high = half_of(word, 1); }
inline void unpack(uint32_t word, float& low, float& high, __nv_bfloat16) { low = bfloat_of(word, 0), high = bfloat_of(word, 1); }
inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) { warp_product(sum, a, b0, b1, 2, half_of); }
inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  warp_product(sum, a, b0, b1, 2, bfloat_of);
}
inline void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { warp_product(sum, a, b0, b1, 1, tf32_of); }
inline bool last_to_arrive(unsigned* counter, unsigned count) {
  const bool last = *counter == count - 1;
  *counter = last ? 0 : *counter + 1;
  return last;
}

}  // namespace lineahead::cuda
