// A draft's first hidden states and the tokens of its steps: a block a sequence.
#include "draft.h"
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kCopyThreads = 256, kChoiceThreads = 1024, kChoiceWarps = kChoiceThreads / kLanes;

struct Best {
  float score;
  int place;

  // A score that is not a number beats none.
  __device__ void meet(float other, int at) {
    if (other > score || (other == score && at < place)) score = other, place = at;
  }
};

__device__ __forceinline__ Best best_of_lanes(Best best) {
  for (int offset = kLanes / 2; offset; offset /= 2) {
    const float score = shuffle_xor(best.score, offset);
    best.meet(score, (int)float_to_bits(shuffle_xor(bits_to_float((uint32_t)best.place), offset)));
  }
  return best;
}

__global__ void __launch_bounds__(kCopyThreads) begin_row(const DraftBegin call) {
  const int row = block_index().x, thread = thread_index();
  const float* source = reinterpret_cast<const float*>(call.sources[row]);
  for (int i = thread; i < call.width; i += kCopyThreads) call.hidden[(size_t)row * call.width + i] = source ? source[i] : 0;
  if (thread == 0) call.tokens[row] = call.ids[(size_t)row * call.nodes];
}

__global__ void __launch_bounds__(kChoiceThreads) choose_row(const DraftChoice call) {
  Best* warps = reinterpret_cast<Best*>(shared_memory());
  const int row = block_index().x, thread = thread_index();
  const float* scores = call.scores + (size_t)row * call.width;
  Best best{-INFINITY, call.width - 1};
  for (int place = thread; place < call.width; place += kChoiceThreads) best.meet(scores[place], place);
  best = best_of_lanes(best);
  if (lane_index() == 0) warps[warp_index()] = best;
  sync_block();
  if (thread != 0) return;
  for (int warp = 1; warp < kChoiceWarps; ++warp) best.meet(warps[warp].score, warps[warp].place);
  call.tokens[row] = call.ids[(size_t)row * call.nodes + call.place] = call.names[best.place];
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_draft_begin(const DraftBegin* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0) return 0;
  return finish(launch(begin_row, *call, call->rows, kCopyThreads, 0, stream), message, message_size);
}

extern "C" int lineahead_draft_choice(const DraftChoice* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0) return 0;
  if (call->width <= 0 || call->place < 0 || call->place >= call->nodes) return refuse("a draft's node that the call does not have", message, message_size);
  return finish(launch(choose_row, *call, call->rows, kChoiceThreads, kChoiceWarps * sizeof(Best), stream), message, message_size);
}
