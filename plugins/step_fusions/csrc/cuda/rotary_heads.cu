// Heads first, queries and keys rotated by halves: a thread has one vector of a head's first half and its partner in the second.
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kThreadsOfABlock = 128;

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreadsOfABlock) rotate_heads(const Rotary call) {
  const int half = call.dim / 2, vectors = half / kCount, all = call.heads + 2 * call.shared;
  const unsigned item = block_index().x * kThreadsOfABlock + thread_index();
  const unsigned head = item / vectors % all, row = item / (vectors * all), place = item % vectors * kCount;
  if (row >= (unsigned)call.batch * call.nodes) return;
  const T* from = static_cast<const T*>(call.product) + ((size_t)row * all + head) * call.dim + place;
  float a[kCount], b[kCount];
  load(a, from);
  load(b, from + half);
  const bool is_query = head < (unsigned)call.heads, is_value = head >= (unsigned)(call.heads + call.shared);
  if (!is_value) {
    float cos[kCount], sin[kCount];
    load(cos, call.cos + (size_t)row * half + place);
    load(sin, call.sin + (size_t)row * half + place);
    for (int i = 0; i < kCount; ++i) {
      const float x = a[i], y = b[i];
      a[i] = x * cos[i] - y * sin[i];
      b[i] = y * cos[i] + x * sin[i];
    }
  }
  const int count = is_query ? call.heads : call.shared;
  const int mine = head - (is_query ? 0 : is_value ? call.heads + call.shared : call.heads);
  T* to = static_cast<T*>(is_query ? call.query : is_value ? call.value : call.key);
  to += (((size_t)(row / call.nodes) * count + mine) * call.nodes + row % call.nodes) * call.dim + place;
  store(to, a);
  store(to + half, b);
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_rotary_heads(const Rotary* call, void* stream, char* message, size_t message_size) {
  const int64_t rows = (int64_t)call->batch * call->nodes, all = call->heads + 2 * (int64_t)call->shared;
  if (rows <= 0) return 0;
  if (call->dim < 2 || call->dim % 2) return refuse("heads of an odd dimension have no halves", message, message_size);
  if (rows * all * call->dim >= kMostItems) return refuse("more numbers than a call can have", message, message_size);
  const auto run = [&](auto form) {
    using Chosen = decltype(form);
    const int64_t items = rows * all * (call->dim / 2 / Chosen::kCount);
    const unsigned blocks = (unsigned)((items + kThreadsOfABlock - 1) / kThreadsOfABlock);
    return launch(rotate_heads<typename Chosen::Type, Chosen::kCount>, *call, blocks, kThreadsOfABlock, 0, stream);
  };
  const std::initializer_list<const void*> pointers = {call->product, call->cos, call->sin, call->query, call->key, call->value};
  return finish(with_form(call->type, call->dim / 2, pointers, run), message, message_size);
}
