// A block a row. The best of each thread's share bound the wanted keys from below; a radix selection of what is left, eight bits a
// pass, ends as soon as a digit's keys are all wanted.
#include "top_tokens.h"

#include "token_key.cuh"
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kTopThreads = 1024, kDigits = 256;

struct Selection {
  uint64_t bound, prefix, best[kTopThreads], found[kMostTop];
  int wanted, exact, filled, counts[kDigits];
};

__device__ void pick_digit(Selection& row, int shift) {
  int digit = kDigits - 1, above = 0;
  while (above + row.counts[digit] < row.wanted) above += row.counts[digit--];
  row.wanted -= above;
  row.prefix |= (uint64_t)digit << shift;
  row.exact = row.counts[digit] == row.wanted;
}

__global__ void __launch_bounds__(kTopThreads) top_of_row(const TopTokens call) {
  Selection& row = *reinterpret_cast<Selection*>(shared_memory());
  const int thread = thread_index();
  const float* scores = call.logits + (size_t)block_index().x * call.width;

  uint64_t best = 0;
  for (int place = thread; place < call.width; place += kTopThreads) {
    const uint64_t key = token_key(scores[place], place);
    if (key > best) best = key;
  }
  row.best[thread] = best;
  if (thread == 0) row.prefix = 0, row.wanted = call.count, row.filled = 0;
  sync_block();
  int larger = 0;
  for (int other = 0; other < kTopThreads; ++other) larger += row.best[other] > best;
  if (best && larger == call.count - 1) row.bound = best;
  sync_block();

  const uint64_t bound = row.bound;
  uint64_t mask = 0, prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (thread < kDigits) row.counts[thread] = 0;
    sync_block();
    for (int place = thread; place < call.width; place += kTopThreads) {
      const uint64_t key = token_key(scores[place], place);
      if (key >= bound && (key & mask) == prefix) count_one(&row.counts[key >> shift & (kDigits - 1)]);
    }
    sync_block();
    if (thread == 0) pick_digit(row, shift);
    sync_block();
    mask |= (uint64_t)(kDigits - 1) << shift, prefix = row.prefix;
    if (row.exact) break;
  }

  for (int place = thread; place < call.width; place += kTopThreads) {
    const uint64_t key = token_key(scores[place], place);
    if (key >= bound && (key & mask) >= prefix) row.found[count_one(&row.filled)] = key;
  }
  sync_block();
  if (thread >= call.count) return;
  int rank = 0;
  for (int other = 0; other < call.count; ++other) rank += row.found[other] > row.found[thread];
  call.keys[(size_t)block_index().x * call.count + rank] = row.found[thread];
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_top_tokens(const TopTokens* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0) return 0;
  if (call->count <= 0 || call->count > kMostTop || call->count > call->width) return refuse("more best tokens than there can be", message, message_size);
  return finish(launch(top_of_row, *call, call->rows, kTopThreads, sizeof(Selection), stream), message, message_size);
}
