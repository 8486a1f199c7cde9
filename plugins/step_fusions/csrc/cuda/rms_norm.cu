// Residual addition and RMS norm: a block a row.
#include "vectors.cuh"

namespace lineahead::fusions {

namespace {

constexpr int kMostThreads = 1024;

struct Rows {
  Norm call;
  int threads, vectors;
};

template <typename T, int kCount>
struct Row {
  const T* x;
  const float* residual;

  __device__ void read(float (&to)[kCount], int vector) const {
    load(to, x + vector * kCount);
    if (!residual) return;
    float more[kCount];
    load(more, residual + vector * kCount);
    for (int i = 0; i < kCount; ++i) to[i] += more[i];
  }
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kMostThreads) norm_row(const Rows rows) {
  float* sums = reinterpret_cast<float*>(shared_memory());  // of each warp
  const Norm& call = rows.call;
  const size_t start = (size_t)block_index().x * call.width;
  const Row<T, kCount> row{static_cast<const T*>(call.x) + start, call.residual ? call.residual + start : nullptr};
  const int thread = thread_index();
  float first[kCount] = {}, weight[kCount] = {}, sum = 0;  // a thread's first vector stays in registers
  if (thread < rows.vectors) load(weight, call.weight + thread * kCount);
  for (int vector = thread; vector < rows.vectors; vector += rows.threads) {
    float x[kCount];
    row.read(x, vector);
    if (call.residual) store(call.total + start + vector * kCount, x);
    for (int i = 0; i < kCount; ++i) sum = fmaf(x[i], x[i], sum);
    if (vector == thread)
      for (int i = 0; i < kCount; ++i) first[i] = x[i];
  }
  sum = lane_sum(sum);
  if (lane_index() == 0) sums[warp_index()] = sum;
  sync_block();
  float total = 0;
  for (int warp = 0; warp < rows.threads / kLanes; ++warp) total += sums[warp];
  const float factor = 1.0f / sqrtf(total / (float)call.width + call.epsilon);
  for (int vector = thread; vector < rows.vectors; vector += rows.threads) {
    if (vector != thread) {
      row.read(first, vector);
      load(weight, call.weight + vector * kCount);
    }
    for (int i = 0; i < kCount; ++i) first[i] *= factor * weight[i];
    store(static_cast<T*>(call.normed) + start + vector * kCount, first);
  }
}

}  // namespace

}  // namespace lineahead::fusions

using namespace lineahead::fusions;

extern "C" int lineahead_rms_norm(const Norm* call, void* stream, char* message, size_t message_size) {
  if (call->rows <= 0) return 0;
  const auto run = [&](auto form) {
    using Chosen = decltype(form);
    const int vectors = call->width / Chosen::kCount;
    const int threads = vectors < kMostThreads ? round_up(vectors, kLanes) : kMostThreads;
    const Rows rows{*call, threads, vectors};
    return launch(norm_row<typename Chosen::Type, Chosen::kCount>, rows, call->rows, threads, threads / kLanes * sizeof(float), stream);
  };
  const std::initializer_list<const void*> pointers = {call->x, call->residual, call->weight, call->normed, call->total};
  return finish(with_form(call->type, call->width, pointers, run), message, message_size);
}
