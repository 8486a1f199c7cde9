// The streaming kernel: commit and attention in one pass over S.
#pragma once

#include "stream_attend.cuh"

namespace lineahead::cuda {

// A lane's numbers of S in one pass: of features feature(u, i), columns [column, column + 4). As the tensor cores' operand of the
// j-th product, column n of it is column 4 n + j of the pass.
template <int kSteps>
struct Held {
  float4 s[kSteps][2];

  __device__ static int first(int u) { return (warp_index() * kSteps + u) * 8; }
  __device__ static int feature(int u, int i) { return first(u) + lane_index() % 4 + 4 * i; }
  __device__ static int column() { return lane_index() / 4 * 4; }
};

template <int kSteps, typename T>
__device__ __forceinline__ void load_state(const Stream<T>& s, int pass, Held<kSteps>& held) {
  const Call& call = s.call;
  const int column = pass * kPassColumns + Held<kSteps>::column();
  const float* from = call.state + s.head * call.features * call.value_dim + s.value_start + column;
#pragma unroll
  for (int u = 0; u < kSteps; ++u)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int f = Held<kSteps>::feature(u, i);
      held.s[u][i] = f < call.features && column < s.values ? load_once(from + (size_t)f * call.value_dim) : zero4();
    }
}

template <int kSteps, typename T>
__device__ __forceinline__ void store_state(const Stream<T>& s, int pass, const Held<kSteps>& held) {
  const Call& call = s.call;
  const int column = pass * kPassColumns + Held<kSteps>::column();
  float* to = call.state_out + s.head * call.features * call.value_dim + s.value_start + column;
#pragma unroll
  for (int u = 0; u < kSteps; ++u)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int f = Held<kSteps>::feature(u, i);
      if (f < call.features && column < s.values) store4(to + (size_t)f * call.value_dim, held.s[u][i]);
    }
}

// S += phi(k) v^T of the rows in `source`.
template <int kSteps, typename T>
__device__ __forceinline__ void fold_rows(const Stream<T>& s, int pass, int rows, Held<kSteps>& held) {
  const float* phi = s.floats(s.layout.phi);
  for (int n = 0; n < rows; ++n) {
    const float4 v = load4(s.values_at() + (size_t)s.tables.source[n] * s.layout.value_stride + pass * kPassColumns + Held<kSteps>::column());
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int f = Held<kSteps>::feature(u, i);
        if (f < s.call.features) add_scaled(held.s[u][i], phi[(size_t)n * s.layout.phi_stride + f], v);
      }
  }
}

template <typename T>
__device__ void fold_norm(const Stream<T>& s, int rows) {
  if (!has_norm(s.call.settings)) return;
  for (int f = thread_index(); f < s.call.features; f += kThreads) {
    float sum = s.floats(s.layout.norm)[f];
    for (int n = 0; n < rows; ++n) sum += s.floats(s.layout.phi)[(size_t)n * s.layout.phi_stride + f];
    s.floats(s.layout.norm)[f] = sum;
  }
}

__device__ __forceinline__ float component(const float4& v, int j) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; }

// A number as the sum of two that the tensor cores take exactly, to 2^-22 of it.
struct Split {
  uint32_t high, low;
  __device__ __forceinline__ explicit Split(float x) : high(to_tf32(x)), low(to_tf32(x - bits_to_float(high))) {}
};

// Rows of shared float32 numbers as the left operand, 8 columns from `at` on.
struct LeftOperand {
  uint32_t high[4], low[4];
  __device__ __forceinline__ LeftOperand(const float* rows, int stride, int count, int at) {
    const int r = lane_index() / 4, q = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = r + i % 2 * 8;
      const Split part(row < count ? rows[(size_t)row * stride + at + q + i / 2 * 4] : 0.0f);
      high[i] = part.high, low[i] = part.low;
    }
  }
};

// phi(q) S and weights times values of one pass, this warp's share of the depth.
template <int kSteps, typename T>
__device__ __forceinline__ void multiply_pass(const Stream<T>& s, int rows, int pass, const Held<kSteps>& held, float (&sum)[4][4]) {
  const Layout& layout = s.layout;
  const int q = lane_index() % 4, column = pass * kPassColumns + Held<kSteps>::column();
  if (s.has_map())
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const int first = Held<kSteps>::first(u);
      if (first >= s.call.features) break;
      const LeftOperand a(s.floats(layout.phi_query), layout.phi_stride, rows, first);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Split b0(component(held.s[u][0], j)), b1(component(held.s[u][1], j));
        multiply_tf32(sum[j], a.low, b0.high, b1.high);
        multiply_tf32(sum[j], a.high, b0.low, b1.low);
        multiply_tf32(sum[j], a.high, b0.high, b1.high);
      }
    }
  for (int c = warp_index() * 8; c < layout.columns; c += kWarps * 8) {
    const LeftOperand a(s.floats(layout.weight), layout.weight_stride, rows, c);
    const T* value = s.values_at() + (size_t)(c + q) * layout.value_stride + column;
    const float4 v0 = load4(value), v1 = load4(value + 4 * layout.value_stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // 16-bit numbers are exact in tf32
      const uint32_t b0 = to_tf32(component(v0, j)), b1 = to_tf32(component(v1, j));
      multiply_tf32(sum[j], a.low, b0, b1);
      multiply_tf32(sum[j], a.high, b0, b1);
    }
  }
}

// Sum over the warps, and the output. `turn` alternates, so that one barrier a pass is enough.
template <typename T>
__device__ void put_output(const Stream<T>& s, const QueryTile& tile, int pass, int turn, const float (&sum)[4][4]) {
  const Call& call = s.call;
  const int r = lane_index() / 4, q = lane_index() % 4, rows = tile.count;
  float* partial = s.floats(s.layout.partial) + (size_t)(turn % 2) * kWarps * s.layout.tile * kPassColumns;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = r + i / 2 * 8;
    if (row < rows)
      store4(partial + ((size_t)warp_index() * rows + row) * kPassColumns + 8 * q + i % 2 * 4,
             make_float4(sum[0][i], sum[1][i], sum[2][i], sum[3][i]));
  }
  sync_block();
  for (int unit = thread_index(); unit < rows * (kPassColumns / 4); unit += kThreads) {
    const int i = unit / (kPassColumns / 4), column = pass * kPassColumns + unit % (kPassColumns / 4) * 4;
    float4 total = zero4();
    for (int w = 0; w < kWarps; ++w) total = add(total, load4(partial + ((size_t)w * rows + i) * kPassColumns + unit % (kPassColumns / 4) * 4));
    if (column >= s.values) continue;
    const size_t row = ((size_t)s.b * call.heads + tile.head(i)) * call.nodes + tile.node(i);
    store4(static_cast<T*>(call.output) + row * call.value_dim + s.value_start + column, total);
  }
}

// The block's share of the state and the window. Where outputs are the buffers of the inputs, what several blocks read is written
// by the last of them to have read it.
template <typename T>
__device__ void put_shared(const Stream<T>& s) {
  const Call& call = s.call;
  const bool row = block_index().y == 0, first = block_index().x == 0 && row, owns = s.tables.flags[1] != 0, last = s.tables.flags[2] != 0;
  if (has_norm(call.settings) && (call.norm_out == call.norm ? last && s.plan.fold_end > s.plan.fold : first))
    for (int f = thread_index(); f < call.features; f += kThreads)
      call.norm_out[s.head * call.features + f] = s.floats(s.layout.norm)[f];
  const bool keys_in_place = call.window_key_out == call.window_key, values_in_place = call.window_value_out == call.window_value;
  if (keys_in_place ? last : first)
    put_window(s, s.keys(), s.layout.key_stride, static_cast<T*>(call.window_key_out) + s.head * s.window_rows * call.dim, call.dim,
               call.dim, keys_in_place);
  if (values_in_place ? owns : row)
    put_window(s, s.values_at(), s.layout.value_stride,
               static_cast<T*>(call.window_value_out) + s.head * s.window_rows * call.value_dim + s.value_start, call.value_dim,
               s.values, values_in_place);
}

// Everything that the columns need before attention, and this block's tickets.
template <int kSteps, typename T>
__device__ void open_stream(Stream<T>& s, const QueryTile& tile, Held<kSteps>& held) {
  const Call& call = s.call;
  ask_for_operands(s);
  stage_window(s);
  if (s.has_map()) load_state(s, 0, held);
  ask_for_state(s);
  s.plan = make_plan(call, s.plan.ring, s.b);
  stage_accepted(s);
  fill_nodes(call, s.plan, s.b, s.tables);
  stage_rows(s, tile, true);
  stage_gains(s);
  if (has_norm(call.settings))
    for (int f = thread_index(); f < call.features; f += kThreads) s.floats(s.layout.norm)[f] = call.norm[s.head * call.features + f];
  if (thread_index() == 0) s.tables.flags[0] = 0;
  wait_copies();
  sync_block();
  if (thread_index() == kThreads - 1) {  // `held` is here: its loads were issued before those that the barrier waited for
    const unsigned slices = grid_size().x, row_blocks = grid_size().y;
    unsigned* by_slice = call.tickets + s.head * (slices + 1);
    const bool owns = row_blocks == 1 || last_to_arrive(by_slice + block_index().x, row_blocks);
    s.tables.flags[1] = owns;
    s.tables.flags[2] = owns && (slices == 1 || last_to_arrive(by_slice + slices, slices));
  }
  fill_columns(s);
}

// Source columns of the rows [start, start + rows) that fold.
template <typename T>
__device__ void list_folds(const Stream<T>& s, int start, int rows) {
  for (int n = thread_index(); n < rows; n += kThreads) s.tables.source[n] = s.column_of(start + n);
  sync_block();
}

// Fold more rows than have room for their features into a later pass of S: a group that closes.
template <int kSteps, typename T>
__device__ void fold_again(const Stream<T>& s, int pass, Held<kSteps>& held) {
  for (int start = s.plan.fold; start < s.plan.fold_end; start += s.layout.fold_tile) {
    const int rows = least(s.layout.fold_tile, s.plan.fold_end - start);
    sync_block();
    list_folds(s, start, rows);
    map_rows(s, QueryTile{0, 0, s.call.nodes, 0}, rows);
    fold_rows(s, pass, rows, held);
  }
}

template <int kSteps, typename T>
__device__ void stream(const Call& call, const Layout& layout, int ring) {
  pass_unused(call);
  Stream<T> s(call, layout, ring);
  const int rows = call.heads / call.shared * call.nodes, first_head = s.g * (call.heads / call.shared), y = block_index().y;
  QueryTile tile{y * layout.tile, least(layout.tile, rows - y * layout.tile), call.nodes, first_head};
  Held<kSteps> held;
  open_stream(s, tile, held);
  const bool folds_now = s.has_map() && s.plan.fold_end > s.plan.fold, in_place = call.state_out == call.state;
  int start = s.plan.fold;
  for (; s.plan.fold_end - start > layout.fold_tile && s.has_map(); start += layout.fold_tile) {
    list_folds(s, start, layout.fold_tile);
    map_rows(s, QueryTile{0, 0, call.nodes, first_head}, layout.fold_tile);
    fold_rows(s, 0, layout.fold_tile, held);
    fold_norm(s, layout.fold_tile);
    sync_block();
  }
  const int folds = folds_now ? s.plan.fold_end - start : 0;
  list_folds(s, start, folds);
  int turn = 0;
  for (int index = y; index < layout.tiles; index += layout.row_blocks) {
    const bool fresh = index == y;
    if (!fresh) {
      tile.start = index * layout.tile, tile.count = least(layout.tile, rows - tile.start);
      sync_block();
      stage_rows(s, tile, false);
      sync_block();
    }
    if (s.has_map()) map_rows(s, tile, fresh ? folds : 0);
    if (fresh) fold_norm(s, folds);
    score(s, tile);
    measure_lengths(s, tile);
    sync_block();
    score_far(s, tile, fresh);
    for (int i = warp_index(); i < tile.count; i += kWarps) weigh_row(s, tile, i);
    sync_block();
    for (int pass = 0; pass < layout.passes; ++pass) {
      if (fresh && s.has_map()) {
        if (pass) load_state(s, pass, held);
        if (pass && start > s.plan.fold)
          fold_again(s, pass, held);
        else
          fold_rows(s, pass, folds, held);
        if (in_place ? folds_now && s.tables.flags[1] : y == 0) store_state(s, pass, held);
      }
      float sum[4][4] = {};
      multiply_pass(s, tile.count, pass, held, sum);
      put_output(s, tile, pass, turn++, sum);
    }
  }
  put_shared(s);
}

template <int kSteps, typename T>
__global__ void __launch_bounds__(kThreads, kSteps <= 4 ? 2 : 1) stream_kernel(const Call call, const Layout layout, int ring) {
  stream<kSteps, T>(call, layout, ring);
}

}  // namespace lineahead::cuda
