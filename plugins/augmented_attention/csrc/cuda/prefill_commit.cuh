// The deferred commit of many rows: S and its norm in one kernel, in float32, then the window in another.
#pragma once

#include "commit.cuh"
#include "prefill_map.cuh"

namespace lineahead::cuda {

template <typename T>
constexpr int kExactParts = 2;  // 16-bit numbers that a float32 is the sum of
template <>
constexpr int kExactParts<__nv_bfloat16> = 3;

template <Map kMap, int kDim, typename T>
struct CommitMemory {
  using Shape = PrefillShape<kMap, kDim>;
  static constexpr int key = 0, value = key + 2 * Shape::kKeyBytes, map = value + 2 * Shape::kValueBytes;
  static constexpr int phi = map + (Shape::kHedge ? Shape::kMapBytes : 0);
  static constexpr int stats = phi + (Shape::kHedge ? kExactParts<T> * Shape::kPhiBytes : 0);
  static constexpr int source = stats + (Shape::kHedge ? kStatBytes : 0), bytes = source + 2 * kChunk * 4;
};

// A block takes kPassColumns columns of one head. The window is read here and written by the next kernel.
template <Map kMap, int kDim, typename T>
__device__ void commit_state(const Call& call, int ring) {
  using Shape = PrefillShape<kMap, kDim>;
  using Memory = CommitMemory<kMap, kDim, T>;
  constexpr int kFeatures = Shape::kFeatures, kParts = Shape::kHedge ? kExactParts<T> : 1, kPart = Shape::kPhiBytes / 2;
  const int g = block_index().z % call.shared, b = block_index().z / call.shared, start = block_index().x * kPassColumns;
  const size_t head = block_index().z;
  char* shared = shared_memory();
  T *keys = reinterpret_cast<T*>(shared + Memory::key), *values = reinterpret_cast<T*>(shared + Memory::value);
  T *map = reinterpret_cast<T*>(shared + Memory::map), *split = reinterpret_cast<T*>(shared + Memory::phi);
  float* stats = reinterpret_cast<float*>(shared + Memory::stats);
  const Plan plan = make_plan(call, ring, b);
  const int window_rows = ring + call.settings.sinks;
  const Rows<T> key_rows(call.window_key, call.pending_key, call.key, head, window_rows, call, kDim);
  const Rows<T> value_rows(call.window_value, call.pending_value, call.value, head, window_rows, call, kDim);
  int* sources = reinterpret_cast<int*>(shared + Memory::source);
  const auto find = [&](int turn) {  // where the rows of a chunk are, two chunks ahead
    const int position = plan.fold + turn * kChunk + thread_index();
    if (thread_index() < kChunk) sources[turn % 2 * kChunk + thread_index()] = position < plan.fold_end ? plan.in_ring(position).packed() : -1;
  };
  const auto stage = [&](int turn) {
    const int* from = sources + turn % 2 * kChunk;
    stage_chunk<kDim>(keys + turn % 2 * (Shape::kKeyBytes / 2), Shape::kKeyStride,
                      [&](int r) { return from[r] < 0 ? nullptr : key_rows.at(Source::unpack(from[r])); });
    stage_chunk<kPassColumns>(values + turn % 2 * (Shape::kValueBytes / 2), kValueStride,
                              [&](int r) { return from[r] < 0 ? nullptr : value_rows.at(Source::unpack(from[r])) + start; });
  };
  if (Shape::kHedge) stage_map<kDim>(map, call.key_map, g);
  find(0), find(1);
  sync_block();
  if (plan.fold < plan.fold_end) stage(0);
  StateSlice<kFeatures> state;
  const size_t at = head * kFeatures * kDim + start;
  state.each([&](float& s, int f, int column) { s = call.state[at + (size_t)f * kDim + column]; });
  const bool sums = Shape::kHedge && start == 0 && state.has_norm();
  if (sums) state.each_norm([&](float& z, int f) { z = call.norm[head * kFeatures + f]; });
  for (int position = plan.fold, turn = 0; position < plan.fold_end; position += kChunk, ++turn) {
    wait_copies();
    sync_block();
    const T *key = keys + turn % 2 * (Shape::kKeyBytes / 2), *value = values + turn % 2 * (Shape::kValueBytes / 2);
    if (position + kChunk < plan.fold_end) stage(turn + 1), find(turn + 2);
    if (Shape::kHedge) {
      map_chunk<kDim>(key, map, stats, [&](int row, int column, float up0, float up1, float low0, float low1) {
        T* to = split + row * Shape::kPhiStride + column;
#pragma unroll
        for (int p = 0; p < kParts; ++p, to += kPart) {
          const uint32_t up = pack(up0, up1, T{}), low = pack(low0, low1, T{});
          float a0, a1, b0, b1;
          unpack(up, a0, a1, T{}), unpack(low, b0, b1, T{});
          *reinterpret_cast<uint32_t*>(to) = up, *reinterpret_cast<uint32_t*>(to + kDim) = low;
          up0 -= a0, up1 -= a1, low0 -= b0, low1 -= b1;
        }
      });
      sync_block();
    }
    state.template fold<kParts>(value, Shape::kHedge ? split : key, Shape::kPhiStride, kPart, Shape::kUnscale, sums, plan.fold_end - position);
  }
  state.each([&](float& s, int f, int column) { call.state_out[at + (size_t)f * kDim + column] = s; });
  if (sums && lane_index() < 4) state.each_norm([&](float& z, int f) { call.norm_out[head * kFeatures + f] = z; });
}

template <Map kMap, int kDim, typename T>
__global__ void __launch_bounds__(kPrefillThreads, 1) commit_kernel(const Call given, const Layout, int ring) {
  Call call = given;
  Layout unused{};
  FixedPreset<kMap, kDim>::fix(call, unused);
  commit_state<kMap, kDim, T>(call, ring);
}

// The window after the commit; a block takes `slice` columns of one head. kLengths: the new lengths go to the workspace.
template <bool kLengths, typename T>
__global__ void __launch_bounds__(kThreads) window_kernel(const Call call, const Layout layout, int ring) {
  pass_unused(call);
  const Block<T> block(call, layout, ring);
  if (thread_index() == 0 && block.slice == 0 && block.g == 0 && kLengths) {
    if (call.index_bytes == 8)
      static_cast<long long*>(call.workspace)[block.b] = block.plan.total;
    else
      static_cast<int*>(call.workspace)[block.b] = block.plan.total;
  }
  write_window(block, block.keys, call.window_key_out, block.value_start, block.values);
  write_window(block, block.values_at, call.window_value_out, block.value_start, block.values);
}

}  // namespace lineahead::cuda
