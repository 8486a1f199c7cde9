// Cosines and sines of positions times frequencies, one of each a thread.
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kThreadsOfABlock = 128;

__global__ void __launch_bounds__(kThreadsOfABlock) tabulate(const Table call) {
  const unsigned item = block_index().x * kThreadsOfABlock + thread_index();
  const unsigned row = item / call.half, place = item % call.half;
  if (row >= (unsigned)call.rows) return;
  const float angle = (float)call.positions[row] * call.frequencies[place];
  call.cos[item] = cosf(angle);
  call.sin[item] = sinf(angle);
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_rotary_table(const Table* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0 || call->half <= 0) return 0;
  const int64_t items = (int64_t)call->rows * call->half;
  if (items >= kMostItems) return refuse("more numbers than a call can have", message, message_size);
  const unsigned blocks = (unsigned)((items + kThreadsOfABlock - 1) / kThreadsOfABlock);
  return finish(launch(tabulate, *call, blocks, kThreadsOfABlock, 0, stream), message, message_size);
}
