// Stands in for the kernels' device.cuh: the threads of a block are fibers of one CPU thread, taken in an order that the
// environment variable EMULATED_ORDER picks, each running until it has to wait for others. Blocks run one after another, so a block
// that overwrites what another has still to read is found out; so is a barrier that not all threads reach.
#pragma once

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
inline void copy_async(void* to, const void* from) { *static_cast<uint4*>(to) = *static_cast<const uint4*>(from); }
inline void wait_copies() {}
inline void prefetch(const void*) {}
inline bool last_to_arrive(unsigned* counter, unsigned count) {
  const bool last = *counter == count - 1;
  *counter = last ? 0 : *counter + 1;
  return last;
}

}  // namespace lineahead::cuda
