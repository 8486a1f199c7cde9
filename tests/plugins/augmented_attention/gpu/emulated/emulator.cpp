// Runs a kernel's blocks on a CPU: fibers, barriers, exchanges within a warp.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include <ucontext.h>

#include "device.cuh"
#include "layout.h"

namespace lineahead::cuda {

namespace {

constexpr int kLaneCount = 32;
constexpr size_t kStack = 64 << 10, kGuard = 4096;
constexpr int kProcessors = 8, kSharedBytes = 227 << 10;

using Kernel = void (*)(const Call, const Layout, int);

// Threads wait here; `turn` counts how often all have come.
struct Barrier {
  int size, arrived = 0;
  unsigned turn = 0;
};

struct Warp {
  Barrier barrier{kLaneCount};
  float value[2][kLaneCount];
  unsigned votes[2] = {};
  const void* rows[2][kLaneCount];
  uint32_t left[2][kLaneCount][4], right[2][kLaneCount][2];
};

struct Thread {
  Fiber fiber;
  std::vector<char> stack;
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
};

std::function<void()> kernel;
std::vector<Thread> threads;
std::vector<Warp> warps;
Barrier block_barrier{0};
jmp_buf scheduler;
ucontext_t scheduler_start;
Thread* running;
bool progress;

void yield() {
  if (!_setjmp(running->state)) _longjmp(scheduler, 1);
}

unsigned wait(Barrier& barrier) {
  const unsigned turn = barrier.turn;
  progress = true;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.turn;
  }
  while (barrier.turn == turn) yield();
  return turn;
}

void body() {
  kernel();
  running->done = progress = true;
  _longjmp(scheduler, 1);
}

void resume(Thread& thread) {
  running = &thread;
  current = &thread.fiber;
  if (_setjmp(scheduler)) return;
  if (thread.started) _longjmp(thread.state, 1);
  thread.started = true;
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.data();
  thread.start.uc_stack.ss_size = thread.stack.size();
  makecontext(&thread.start, body, 0);
  setcontext(&thread.start);
}

void run_block(uint3 block, dim3 grid, size_t shared_bytes, std::vector<int>& order) {
  std::vector<char> shared(shared_bytes + kGuard + 128, (char)0xff);  // not-a-numbers
  char* memory = shared.data() + (128 - reinterpret_cast<size_t>(shared.data()) % 128) % 128;
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread.fiber = Fiber{block, grid, (int)i, memory};
    thread.started = thread.done = false;
    if (thread.stack.empty()) thread.stack.resize(kStack);
  }
  warps.assign(threads.size() / kLaneCount, Warp{});
  block_barrier = Barrier{(int)threads.size()};
  for (size_t left = threads.size(); left;) {
    progress = false;
    left = 0;
    for (const int i : order) {
      if (!threads[i].done) resume(threads[i]);
      left += !threads[i].done;
    }
    if (left && !progress) {
      std::fprintf(stderr, "block (%u, %u, %u): not all threads reach a barrier\n", block.x, block.y, block.z);
      std::abort();
    }
  }
  for (size_t i = 0; i < kGuard; ++i)
    if (memory[shared_bytes + i] != (char)0xff) {
      std::fprintf(stderr, "block (%u, %u, %u) wrote %zu bytes after its shared memory\n", block.x, block.y, block.z, i);
      std::abort();
    }
}

}  // namespace

Fiber* current;

void wait_for_block() { wait(block_barrier); }

float exchange(float mine, int mask) {
  const int lane = current->thread % kLaneCount;
  Warp& warp = warps[current->thread / kLaneCount];
  const unsigned half = warp.barrier.turn % 2;
  warp.value[half][lane] = mine;
  wait(warp.barrier);
  return warp.value[half][lane ^ mask];
}

void warp_product(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int per, float (*read)(uint32_t, int)) {
  const int lane = current->thread % kLaneCount;
  Warp& warp = warps[current->thread / kLaneCount];
  const unsigned half = warp.barrier.turn % 2;
  for (int i = 0; i < 4; ++i) warp.left[half][lane][i] = a[i];
  warp.right[half][lane][0] = b0, warp.right[half][lane][1] = b1;
  wait(warp.barrier);
  for (int i = 0; i < 4; ++i) {  // row lane / 4 (+ 8), column 2 (lane % 4) (+ 1)
    const int row = lane / 4, column = lane % 4 * 2 + i % 2;
    float total = sum[i];
    for (int k = 0; k < 8 * per; ++k) {
      const int word = k % (4 * per) / per, upper = k / (4 * per);
      const float x = read(warp.left[half][row * 4 + word][upper * 2 + i / 2], k % per);
      total += x * read(warp.right[half][column * 4 + word][upper], k % per);
    }
    sum[i] = total;
  }
}

void read_blocks(uint32_t (&to)[4], const void* row, bool transposed) {
  const int lane = current->thread % kLaneCount;
  Warp& warp = warps[current->thread / kLaneCount];
  const unsigned half = warp.barrier.turn % 2;
  warp.rows[half][lane] = row;
  wait(warp.barrier);
  for (int block = 0; block < 4; ++block) {
    const void* const* rows = warp.rows[half] + 8 * block;
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int of = transposed ? lane % 4 * 2 + i : lane / 4, number = transposed ? lane / 4 : lane % 4 * 2 + i;
      pair[i] = static_cast<const uint16_t*>(rows[of])[number];
    }
    std::memcpy(&to[block], pair, 4);
  }
  exchange(0, 0);  // nobody writes what others have still to read
}

unsigned vote(bool mine) {
  const int lane = current->thread % kLaneCount;
  Warp& warp = warps[current->thread / kLaneCount];
  const unsigned half = warp.barrier.turn % 2, bit = 1u << lane;
  warp.votes[half] = (warp.votes[half] & ~bit) | (mine ? bit : 0);
  wait(warp.barrier);
  return warp.votes[half];
}

}  // namespace lineahead::cuda

using namespace lineahead::cuda;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* processors = std::getenv("EMULATED_PROCESSORS");
  *value = attribute == cudaDevAttrMultiProcessorCount ? processors ? std::atoi(processors) : kProcessors : kSharedBytes;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  const Kernel step = reinterpret_cast<Kernel>(const_cast<void*>(function));
  const auto work = [=] { step(*static_cast<const Call*>(arguments[0]), *static_cast<const Layout*>(arguments[1]), *static_cast<const int*>(arguments[2])); };
  return run_kernel(work, grid, block, shared);
}

cudaError_t run_kernel(const std::function<void()>& work, dim3 grid, dim3 block, size_t shared) {
  kernel = work;
  threads.resize(block.x);
  const char* seed = std::getenv("EMULATED_ORDER");
  std::mt19937 random(seed ? std::atoi(seed) : 0);
  std::vector<int> order(block.x), blocks(grid.x * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = (int)i;
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = (int)i;
  for (size_t i = order.size(); seed && i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  for (size_t i = blocks.size(); seed && i > 1; --i) std::swap(blocks[i - 1], blocks[random() % i]);
  for (const int i : blocks) run_block(uint3{i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)}, grid, shared, order);
  return cudaSuccess;
}
