// activation(gate) * up, a vector a thread.
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kThreadsOfABlock = 128;

__device__ __forceinline__ float activated(float x, int activation) {
  if (activation == kSilu) return x / (1.0f + expf(-x));
  if (activation == kGeluTanh) return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreadsOfABlock) gate_rows(const Gate call) {
  const unsigned vectors = call.width / kCount, item = block_index().x * kThreadsOfABlock + thread_index();
  const unsigned row = item / vectors, place = item % vectors * kCount;
  if (row >= (unsigned)call.rows) return;
  const T* from = static_cast<const T*>(call.product) + (size_t)row * 2 * call.width + place;
  float gate[kCount], up[kCount];
  load(gate, from);
  load(up, from + call.width);
  for (int i = 0; i < kCount; ++i) up[i] *= activated(gate[i], call.activation);
  store(static_cast<T*>(call.output) + (size_t)row * call.width + place, up);
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_gated_unit(const Gate* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0 || call->width <= 0) return 0;
  if ((int64_t)call->rows * call->width >= kMostItems) return refuse("more numbers than a call can have", message, message_size);
  const auto run = [&](auto form) {
    using Chosen = decltype(form);
    const int64_t items = (int64_t)call->rows * (call->width / Chosen::kCount);
    const unsigned blocks = (unsigned)((items + kThreadsOfABlock - 1) / kThreadsOfABlock);
    return launch(gate_rows<typename Chosen::Type, Chosen::kCount>, *call, blocks, kThreadsOfABlock, 0, stream);
  };
  return finish(with_form(call->type, call->width, {call->product, call->output}, run), message, message_size);
}
