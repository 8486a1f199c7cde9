// Attention of a long chain: a block takes one query head and kPassColumns columns of values and walks over the text in chunks.
//
// S, in registers, holds what lies before the chunk that precedes the present one (sliding), or before the present one, which is a
// group. Warps 0 to 3 meet the preceding chunk, warps 4 to 7 the present one and the sinks; each takes 16 rows, and their sums meet
// in shared memory.
#pragma once

#include "blend.cuh"
#include "prefill_map.cuh"
#include "stream.cuh"

namespace lineahead::cuda {

constexpr int kMostSinks = 8, kSinkRows = 16, kMostTaps = 64, kPartialStride = kPassColumns + 8;

template <Map kMap, int kDim>
struct AttendMemory {
  using Shape = PrefillShape<kMap, kDim>;
  static constexpr int kHedge = Shape::kHedge;
  static constexpr int query = 0, key = query + Shape::kKeyBytes, value = key + 2 * Shape::kKeyBytes;
  static constexpr int phi_query = value + 3 * Shape::kValueBytes, phi_key = phi_query + kHedge * Shape::kPhiBytes;
  static constexpr int sink_key = phi_key + 2 * kHedge * Shape::kPhiBytes, sink_value = sink_key + kSinkRows * Shape::kKeyStride * 2;
  static constexpr int state = sink_value + kSinkRows * kValueStride * 2, partial = state + Shape::kFeatures * kPassColumns * 4;
  static constexpr int conv = partial + kChunk * kPartialStride * 4, norm = conv + kMostTaps * 4;
  static constexpr int stats = norm + kHedge * Shape::kFeatures * 4, bytes = stats + kHedge * kStatBytes;
};

struct alignas(8) FloatPair {
  float x[2];
};

template <Map kMap, int kDim, typename T>
struct Attend {
  using Shape = PrefillShape<kMap, kDim>;
  using Memory = AttendMemory<kMap, kDim>;
  static constexpr bool kHedge = Shape::kHedge;
  static constexpr int kFeatures = Shape::kFeatures;

  const Call& call;
  Plan plan;
  int b, h, start;      // sequence, query head, first column
  size_t head;          // b * Hkv + g
  int first, end;       // positions: of the first chunk, after the last node
  int tile, half;       // of this warp: rows from 16 tile on; 0 for the preceding chunk, 1 for the present one
  float alpha, local_scale;
  char* shared;

  __device__ Attend(const Call& call, int ring)
      : call(call),
        b(block_index().z / call.shared),
        h(block_index().z % call.shared * (call.heads / call.shared) + block_index().y),
        start(block_index().x * kPassColumns),
        head(block_index().z),
        tile(warp_index() % 4),
        half(warp_index() / 4),
        shared(shared_memory()) {
    plan = make_plan(call, ring, b);
    first = kHedge ? plan.total : plan.total / kChunk * kChunk, end = plan.total + call.nodes;
    alpha = to_float(static_cast<const T*>(call.alpha)[h * call.alpha_step]);
    local_scale = to_float(static_cast<const T*>(call.local_scale)[h * call.local_scale_step]);
  }

  template <typename Number>
  __device__ Number* at(int offset) const { return reinterpret_cast<Number*>(shared + offset); }
  __device__ T* query() const { return at<T>(Memory::query); }
  __device__ T* key(int turn) const { return at<T>(Memory::key + turn % 2 * Shape::kKeyBytes); }
  __device__ T* value(int turn) const { return at<T>(Memory::value + turn % 3 * Shape::kValueBytes); }
  __device__ T* phi_query() const { return kHedge ? at<T>(Memory::phi_query) : query(); }
  __device__ T* phi_key(int turn) const { return kHedge ? at<T>(Memory::phi_key + turn % 2 * Shape::kPhiBytes) : key(turn); }
  __device__ uint32_t* state() const { return at<uint32_t>(Memory::state); }  // [F, kPassColumns] in TF32, columns permuted
  __device__ static int place(int feature, int column) { return feature * kPassColumns + (column ^ feature / 2 % 4 * 8); }
  __device__ int row(int u) const { return tile * 16 + u * 8 + lane_index() / 4; }
  __device__ static int column(int n, int e) { return n * 8 + lane_index() % 4 * 2 + e % 2; }
  __device__ bool is_node(int position) const { return position >= plan.total && position < end; }

  __device__ const T* key_at(int position) const { return row_at<kDim, T>(call, plan, head, call.window_key_out, call.key, position); }
  __device__ const T* value_at(int position) const {
    const T* from = row_at<kDim, T>(call, plan, head, call.window_value_out, call.value, position);
    return from ? from + start : nullptr;
  }
  __device__ size_t node_row(int position) const { return ((size_t)b * call.heads + h) * call.nodes + position - plan.total; }

  // Start copying the chunk at position c, and features of the one before it.
  __device__ __forceinline__ void stage(int turn, int c) const {
    stage_chunk<kDim>(query(), Shape::kKeyStride,
                      [&](int r) { return is_node(c + r) ? static_cast<const T*>(call.query) + node_row(c + r) * kDim : nullptr; });
    stage_chunk<kDim>(key(turn), Shape::kKeyStride, [&](int r) { return key_at(c + r); });
    stage_chunk<kPassColumns>(value(turn), kValueStride, [&](int r) { return value_at(c + r); });
    if (!kHedge) return;
    const T* queries = features_at<T>(call, b, h, turn);
    const T* keys = features_at<T>(call, b, call.heads + block_index().z % call.shared, turn);
    stage_chunk<kFeatures>(phi_query(), Shape::kPhiStride, [&](int r) { return queries + r * kFeatures; });
    stage_chunk<kFeatures>(phi_key(turn), Shape::kPhiStride, [&](int r) { return keys + r * kFeatures; });
  }

  // Everything before the first chunk.
  __device__ __forceinline__ void open(StateSlice<kFeatures>& slice) const {
    stage(0, first);
    if (kHedge) stage_chunk<kDim>(key(1), Shape::kKeyStride, [&](int r) { return key_at(first - kChunk + r); });
    stage_chunk<kPassColumns>(value(2), kValueStride, [&](int r) { return value_at(first - kChunk + r); });
    const int window_rows = plan.ring + call.settings.sinks;
    for (int i = thread_index(); i < kSinkRows * kDim / 8; i += kThreads) {
      const int s = i / (kDim / 8), part = i % (kDim / 8) * 8;
      uint4 k{0, 0, 0, 0}, v{0, 0, 0, 0};
      if (s < call.settings.sinks && s < end) {
        const bool node = s >= plan.total;
        const size_t from = (node ? head * call.nodes + s - plan.total : head * window_rows + plan.ring + s) * kDim + part;
        k = *reinterpret_cast<const uint4*>(static_cast<const T*>(node ? call.key : call.window_key_out) + from);
        v = *reinterpret_cast<const uint4*>(static_cast<const T*>(node ? call.value : call.window_value_out) + from);
      }
      *reinterpret_cast<uint4*>(at<T>(Memory::sink_key) + s * Shape::kKeyStride + part) = k;
      const int column = part - start;
      if (column >= 0 && column < kPassColumns) *reinterpret_cast<uint4*>(at<T>(Memory::sink_value) + s * kValueStride + column) = v;
    }
    if (thread_index() < kMostTaps)
      at<float>(Memory::conv)[thread_index()] =
          thread_index() < call.settings.taps ? to_float(static_cast<const T*>(call.conv)[h * call.settings.taps + thread_index()]) : 0;
    const size_t from = head * kFeatures * kDim + start;
    slice.each([&](float& s, int f, int column) {
      s = call.state_out[from + (size_t)f * kDim + column];
      state()[place(f, column)] = to_tf32(s);
    });
    if (kHedge && thread_index() < kFeatures) at<float>(Memory::norm)[thread_index()] = call.norm_out[head * kFeatures + thread_index()];
    if (kHedge) return;
    sync_block();
    unit(at<T>(Memory::sink_key), plan.total, call.settings.sinks);
  }

  // Rows [from, to) to unit length.
  __device__ __forceinline__ void unit(T* rows, int from, int to) const {
    if (from < to) unit_rows(rows + from * Shape::kKeyStride, Shape::kKeyStride, to - from, kDim, call.settings.eps);
  }

  // The keys of the chunk as the next call gets them.
  __device__ __forceinline__ void put_keys(const T* keys, int c) const {
    if (block_index().x || block_index().y) return;
    constexpr int kParts = kDim / 8;
    for (int i = thread_index(); i < kChunk * kParts; i += kThreads) {
      const int r = i / kParts, part = i % kParts * 8;
      if (!is_node(c + r)) continue;
      T* to = static_cast<T*>(call.pending_key_out) + (head * call.nodes + c + r - plan.total) * kDim + part;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(keys + r * Shape::kKeyStride + part);
    }
  }

  // q . k of this warp's rows and the pairs [from, to] of 8 columns each.
  template <int kDepth>
  __device__ __forceinline__ void multiply_rows(const T* left, const T* right, int stride, int from, int to, float (&sum)[8][4]) const {
#pragma unroll 2
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[4];
      load_left(left, stride, tile * 16, k, a);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < from || i > to) continue;
        uint32_t b[4];
        load_right(right, stride, i * 16, k, b);
        multiply(sum[2 * i], a, b[0], b[1], T{}), multiply(sum[2 * i + 1], a, b[2], b[3], T{});
      }
    }
  }

  // phi(q) S, and phi(q) z.
  __device__ __forceinline__ void multiply_state(float (&sum)[4][4], float (&total)[2]) const {
    const int q = lane_index() % 4, r = lane_index() / 4;
    const float* norm = at<float>(Memory::norm);
#pragma unroll 2
    for (int k = 0; k < kFeatures; k += 16) {
      uint32_t pairs[4];
      load_left(phi_query(), Shape::kPhiStride, tile * 16, k, pairs);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int f = k + s * 8 + q * 2;
        float x[4];
        unpack_pair<T>(pairs[2 * s], x[0], x[1]), unpack_pair<T>(pairs[2 * s + 1], x[2], x[3]);
        if (kHedge) {
          const float z0 = norm[f], z1 = norm[f + 1];
          total[0] = fmaf(x[0], z0, fmaf(x[1], z1, total[0])), total[1] = fmaf(x[2], z0, fmaf(x[3], z1, total[1]));
        }
        const uint32_t a[4] = {bits_of(x[0]), bits_of(x[2]), bits_of(x[1]), bits_of(x[3])};
#pragma unroll
        for (int n = 0; n < 4; ++n) multiply_tf32(sum[n], a, state()[place(f, n * 8 + r)], state()[place(f + 1, n * 8 + r)]);
      }
    }
  }

  // Weights of the preceding chunk before gains: local ones above the diagonal, far ones on and under it.
  __device__ __forceinline__ void score_before(int turn, int c, float (&weight)[9][4]) const {
    float near[8][4] = {}, far[8][4] = {};
    multiply_rows<kDim>(query(), key(turn + 1), Shape::kKeyStride, tile, 3, near);
    multiply_rows<kFeatures>(phi_query(), phi_key(turn), Shape::kPhiStride, 0, tile, far);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int attended = plan.attended - c + kChunk;
      float peak = -INFINITY, sum = 0, total = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e)
          if (column(n, e) > row(u) && column(n, e) >= attended) peak = fmaxf(peak, near[n][e] *= call.settings.scale);
      peak = row_max(peak);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e)
          if (column(n, e) <= row(u))
            total += weight[n][e] = far[n][e] * (Shape::kUnscale * Shape::kUnscale);
          else
            sum += weight[n][e] = column(n, e) >= attended ? local_weight(kSoftmax, near[n][e], peak) : 0;
      put_stats(u, peak, row_sum(sum), row_sum(total));
    }
  }

  // Weights of the present chunk and of the sinks before gains; `total` is phi(q) z.
  __device__ __forceinline__ void score_present(int turn, int c, const float (&total)[2], float (&weight)[9][4]) const {
    const Settings& settings = call.settings;
    float scores[8][4] = {}, sinks[4] = {};
    multiply_rows<kDim>(query(), key(turn), Shape::kKeyStride, 0, tile, scores);
    if (settings.sinks)
#pragma unroll 2
      for (int k = 0; k < kDim; k += 16) {
        uint32_t a[4], b[4];
        load_left(query(), Shape::kKeyStride, tile * 16, k, a);
        load_right(at<T>(Memory::sink_key), Shape::kKeyStride, 0, k, b);
        multiply(sinks, a, b[0], b[1], T{});
      }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float peak = -INFINITY, sum = 0;
      unsigned seen = 0;  // a bit a column
#pragma unroll
      for (int n = 0; n < 9; ++n)
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) {
          const int j = n < 8 ? column(n, e) : column(0, e);
          const bool sees = n < 8 ? j <= row(u) && c + j >= settings.sinks : j < settings.sinks && j <= c + row(u);
          weight[n][e] = (n < 8 ? scores[n][e] : sinks[e]) * settings.scale;
          if (sees) seen |= 1u << (n * 2 + e % 2), peak = fmaxf(peak, weight[n][e]);
        }
      if (kHedge) peak = row_max(peak);
#pragma unroll
      for (int n = 0; n < 9; ++n)
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e)
          sum += weight[n][e] = seen >> (n * 2 + e % 2) & 1 ? local_weight(settings.local, weight[n][e], peak) : 0;
      if (kHedge) put_stats(u, peak, row_sum(sum), row_sum(total[u]) * Shape::kUnscale);
    }
  }

  __device__ __forceinline__ void put_stats(int u, float peak, float near, float far) const {
    if (lane_index() % 4 == 0) store4(at<float>(Memory::stats) + (half * kChunk + row(u)) * 4, make_float4(peak, near, far, 0));
  }

  // What this warp's local and far weights of row(u) are multiplied by.
  __device__ __forceinline__ Gains row_gains(int u) const {
    if (!kHedge) return Gains{local_scale, alpha, 1};
    const float4 before = load4(at<float>(Memory::stats) + row(u) * 4), present = load4(at<float>(Memory::stats) + (kChunk + row(u)) * 4);
    const float peak = fmaxf(before.x, present.x), lift = __expf(before.x - peak), own = __expf(present.x - peak);
    Gains gain = gains(call.settings, Part::kWhole, alpha, local_scale, fmaf(before.y, lift, present.y * own), before.z + present.z);
    gain.near *= half ? own : lift;
    return gain;
  }

  // Final weights times values, onto `sum`.
  __device__ __forceinline__ void combine(int turn, const Gains (&gain)[2], float (&weight)[9][4], float (&sum)[4][4]) const {
    const float* conv = at<float>(Memory::conv);
    const int reach = tile * 16 - call.settings.taps + 1;  // the first column that the filter meets
    const int from = half ? 0 : kHedge ? 0 : largest(reach + kChunk, 0) / 16, to = half ? tile : 3;
    const T* values = value(half ? turn : turn + 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < from || i > to) continue;
#pragma unroll
      for (int n = 2 * i; n < 2 * i + 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int above = column(n, e) - row(e / 2), lag = half ? -above : kChunk - above;
          weight[n][e] *= kHedge && !half && above <= 0 ? gain[e / 2].far : gain[e / 2].near;
          if ((unsigned)lag < (unsigned)kMostTaps) weight[n][e] += conv[lag];
        }
      const uint32_t a[4] = {pack_pair<T>(weight[2 * i][0], weight[2 * i][1]), pack_pair<T>(weight[2 * i][2], weight[2 * i][3]),
                             pack_pair<T>(weight[2 * i + 1][0], weight[2 * i + 1][1]), pack_pair<T>(weight[2 * i + 1][2], weight[2 * i + 1][3])};
      multiply_values(a, values, i * 16, sum);
    }
    if (!half || !call.settings.sinks) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) weight[8][e] *= gain[e / 2].near;
    const uint32_t a[4] = {pack_pair<T>(weight[8][0], weight[8][1]), pack_pair<T>(weight[8][2], weight[8][3]), 0, 0};
    multiply_values(a, at<T>(Memory::sink_value), 0, sum);
  }
  __device__ __forceinline__ void multiply_values(const uint32_t (&a)[4], const T* values, int row, float (&sum)[4][4]) const {
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      uint32_t b[4];
      load_right_transposed(values, kValueStride, row, n * 8, b);
      multiply(sum[n], a, b[0], b[1], T{}), multiply(sum[n + 1], a, b[2], b[3], T{});
    }
  }

  // Where the two halves meet.
  __device__ FloatPair* partial(int u, int n) const {
    return reinterpret_cast<FloatPair*>(at<float>(Memory::partial) + row(u) * kPartialStride + column(n, 0));
  }
  __device__ __forceinline__ void put_output(int c, const float (&sum)[4][4]) const {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (!is_node(c + row(u))) continue;
      T* out = static_cast<T*>(call.output) + node_row(c + row(u)) * kDim + start;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const FloatPair other = *partial(u, n);
        *reinterpret_cast<uint32_t*>(out + column(n, 0)) = pack_pair<T>(sum[n][2 * u] + other.x[0], sum[n][2 * u + 1] + other.x[1]);
      }
    }
  }

  // Take the chunk that S lacks for the next one into it.
  __device__ __forceinline__ void fold(int turn, StateSlice<kFeatures>& slice) const {
    const T* phi = phi_key(turn);
    slice.template fold<1>(value(kHedge ? turn + 2 : turn), phi, Shape::kPhiStride, 0, Shape::kUnscale);
    slice.each([&](float& s, int f, int column) { state()[place(f, column)] = to_tf32(s); });
    if (!kHedge || thread_index() >= kFeatures) return;
    float sum = 0;
#pragma unroll 8
    for (int r = 0; r < kChunk; ++r) sum += to_float(phi[r * Shape::kPhiStride + thread_index()]);
    float& norm = at<float>(Memory::norm)[thread_index()];
    norm = fmaf(Shape::kUnscale, sum, norm);
  }

  __device__ __forceinline__ void run() const {
    StateSlice<kFeatures> slice;
    open(slice);
#pragma unroll 1
    for (int turn = 0, c = first; c < end; ++turn, c += kChunk) {
      const bool more = c + kChunk < end;
      wait_copies();
      sync_block();
      if (!kHedge) {
        unit(query(), 0, kChunk), unit(key(turn), largest(plan.total - c, 0), kChunk);
        sync_block();
      }
      put_keys(key(turn), c);
      float weight[9][4] = {}, sum[4][4] = {}, total[2] = {};
      if (half == (kHedge ? 1 : 0)) multiply_state(sum, total);
      if (half)
        score_present(turn, c, total, weight);
      else if (kHedge)
        score_before(turn, c, weight);
      sync_block();
      if (more) stage(turn + 1, c + kChunk);
      const Gains gain[2] = {row_gains(0), row_gains(1)};
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[n][e] *= gain[e / 2].far * Shape::kUnscale;
      combine(turn, gain, weight, sum);
      if (!half)
#pragma unroll
        for (int n = 0; n < 4; ++n) *partial(0, n) = FloatPair{sum[n][0], sum[n][1]}, *partial(1, n) = FloatPair{sum[n][2], sum[n][3]};
      if (more) {
        if (!kHedge && c < call.settings.sinks) {  // sinks never enter S
          for (int i = thread_index(); i < call.settings.sinks - c; i += kThreads)
            for (int d = 0; d < kDim; ++d) key(turn)[i * Shape::kKeyStride + d] = from_float<T>(0);
          sync_block();
        }
        fold(turn, slice);
      }
      sync_block();
      if (half) put_output(c, sum);
    }
  }
};

template <Map kMap, int kDim, typename T>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const Call given, const Layout, int ring) {
  Call call = given;
  Layout unused{};
  FixedPreset<kMap, kDim>::fix(call, unused);
  const Attend<kMap, kDim, T> attend(call, ring);
  attend.run();
}

}  // namespace lineahead::cuda
