// Attention of a long chain: a block takes one query head and kPassColumns columns of values and walks over the text in chunks.
//
// S, in registers, holds what lies before the chunk that precedes the present one (sliding), or before the present one, which is a
// group; products read a 16-bit copy of it, scaled, with the norm as one more column. Of a row's
// sum each role of warps has one part: local keys of the preceding chunk (above the diagonal), far ones (on and under it), the present
// chunk with the sinks, and S. They meet in shared memory.
#pragma once

#include "blend.cuh"
#include "prefill_map.cuh"

namespace lineahead::cuda {

constexpr int kMostSinks = 8, kSinkRows = 16, kMostTaps = 64;
constexpr int kStateRows = kPassColumns + 16;  // columns of S, the norm, zeros
enum Role { kBefore, kFar, kPresent, kRemote };  // of a warp

template <Map kMap, int kDim>
struct AttendMemory {
  using Shape = PrefillShape<kMap, kDim>;
  static constexpr int kHedge = Shape::kHedge;
  static constexpr int query = 0, key = query + Shape::kKeyBytes, value = key + 2 * Shape::kKeyBytes;
  static constexpr int phi_query = value + 3 * Shape::kValueBytes, phi_key = phi_query + kHedge * Shape::kPhiBytes;
  static constexpr int sink_key = phi_key + 2 * kHedge * Shape::kPhiBytes, sink_value = sink_key + kSinkRows * Shape::kKeyStride * 2;
  static constexpr int state = sink_value + kSinkRows * kValueStride * 2, partial = state + kStateRows * Shape::kPhiStride * 2;
  static constexpr int conv = partial + (kRoles - 1) * kChunk * kPassColumns * 4, peaks = conv + kMostTaps * 4, stats = peaks + kPrefillThreads / kLanes * 4;
  static constexpr int bytes = stats + kHedge * kStatBytes;
};

template <typename T>
constexpr bool kHalfNumbers = false;  // they end at 65,504
template <>
constexpr bool kHalfNumbers<__half> = true;

template <Map kMap, int kDim, typename T>
struct Attend {
  using Shape = PrefillShape<kMap, kDim>;
  using Memory = AttendMemory<kMap, kDim>;
  static constexpr bool kHedge = Shape::kHedge;
  static constexpr int kFeatures = Shape::kFeatures;
  static constexpr bool kScales = kHalfNumbers<T>;

  const Call& call;
  Plan plan;
  int b, h, start;      // sequence, query head, first column
  size_t head;          // b * Hkv + g
  int first, end;       // positions: of the first chunk, after the last node
  int tile, role;       // of this warp: rows from 16 tile on; a Role
  float alpha, local_scale;
  char* shared;

  __device__ Attend(const Call& call, int ring)
      : call(call),
        b(block_index().z / call.shared),
        h(block_index().z % call.shared * (call.heads / call.shared) + block_index().y),
        start(block_index().x * kPassColumns),
        head(block_index().z),
        tile(warp_index() % 4),
        role(warp_index() / 4),
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
  __device__ T* state() const { return at<T>(Memory::state); }  // [kStateRows, kPhiStride], transposed
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
    const int node = c - plan.total, left = call.nodes - node;
    if (kHedge || node >= 0) {
      const size_t own = head * call.nodes + node;
      stage_rows<kDim>(query(), Shape::kKeyStride, static_cast<const T*>(call.query) + node_row(c) * kDim, kDim, left);
      stage_rows<kDim>(key(turn), Shape::kKeyStride, static_cast<const T*>(call.key) + own * kDim, kDim, left);
      stage_rows<kPassColumns>(value(turn), kValueStride, static_cast<const T*>(call.value) + own * kDim + start, kDim, left);
    } else {
      stage_chunk<kDim>(query(), Shape::kKeyStride,
                        [&](int r) { return is_node(c + r) ? static_cast<const T*>(call.query) + node_row(c + r) * kDim : nullptr; });
      stage_chunk<kDim>(key(turn), Shape::kKeyStride, [&](int r) { return key_at(c + r); });
      stage_chunk<kPassColumns>(value(turn), kValueStride, [&](int r) { return value_at(c + r); });
    }
    if (!kHedge) return;
    stage_rows<kFeatures>(phi_query(), Shape::kPhiStride, features_at<T>(call, b, h, turn), kFeatures, kChunk);
    stage_rows<kFeatures>(phi_key(turn), Shape::kPhiStride, features_at<T>(call, b, call.heads + block_index().z % call.shared, turn), kFeatures, kChunk);
  }

  // Everything before the first chunk.
  __device__ __forceinline__ void open(StateSlice<kFeatures>& slice) const {
    stage(0, first);
    if (kHedge) stage_chunk<kDim>(key(1), Shape::kKeyStride, [&](int r) { return key_at(first - kChunk + r); });
    stage_chunk<kPassColumns>(value(2), kValueStride, [&](int r) { return value_at(first - kChunk + r); });
    const int window_rows = plan.ring + call.settings.sinks;
    for (int i = thread_index(); i < kSinkRows * kDim / 8; i += kPrefillThreads) {
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
    for (int i = thread_index(); i < (kStateRows - kPassColumns) * Shape::kPhiStride; i += kPrefillThreads)
      state()[kPassColumns * Shape::kPhiStride + i] = from_float<T>(0);
    const size_t from = head * kFeatures * kDim + start;
    slice.each([&](float& s, int f, int column) { s = call.state_out[from + (size_t)f * kDim + column]; });
    if (kHedge) slice.each_norm([&](float& z, int f) { z = call.norm_out[head * kFeatures + f]; });
    measure(slice);
    sync_block();
    if (!kHedge) unit(at<T>(Memory::sink_key), plan.total, call.settings.sinks);
  }

  // The largest number of this warp's part of S, to be read by all after a barrier.
  __device__ __forceinline__ void measure(StateSlice<kFeatures>& slice) const {
    if (!kScales) return;
    float peak = 0;
    slice.each([&](float& s, int, int) { peak = fmaxf(peak, fabsf(s)); });
    if (kHedge && slice.has_norm()) slice.each_norm([&](float& z, int) { peak = fmaxf(peak, fabsf(z)); });
    peak = lane_max(peak);
    if (lane_index() == 0) at<float>(Memory::peaks)[warp_index()] = peak;
  }

  // S and the norm to shared memory, times a power of two that makes the largest 2^13 to 2^14; returns its inverse.
  __device__ __forceinline__ float publish(StateSlice<kFeatures>& slice) const {
    float scale = 1, inverse = 1;
    if (kScales) {
      float peak = 0;
#pragma unroll
      for (int i = 0; i < kPrefillThreads / kLanes; i += 4) {
        const float4 some = load4(at<float>(Memory::peaks) + i);
        peak = fmaxf(peak, fmaxf(fmaxf(some.x, some.y), fmaxf(some.z, some.w)));
      }
      const uint32_t exponent = largest(least((int)(float_to_bits(peak) >> 23), 240), 14);
      scale = bits_to_float((2 * 127 + 13 - exponent) << 23), inverse = bits_to_float((exponent - 13) << 23);
    }
    using Slice = StateSlice<kFeatures>;
    if (!Slice::is_used()) return inverse;
#pragma unroll
    for (int n = 0; n < Slice::kTiles; ++n) {
#pragma unroll
      for (int m = 0; m < Slice::kBands; ++m)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          *reinterpret_cast<uint32_t*>(state() + Slice::column(m, e) * Shape::kPhiStride + Slice::feature(n, 0)) =
              pack(scale * slice.s[m][n][e], scale * slice.s[m][n][e + 1], T{});
      if (kHedge && lane_index() < 4 && Slice::has_norm())
        *reinterpret_cast<uint32_t*>(state() + kPassColumns * Shape::kPhiStride + Slice::feature(n, 0)) =
            pack(scale * slice.norm[n][0], scale * slice.norm[n][1], T{});
    }
    return inverse;
  }

  // Rows [from, to) of at most a chunk to unit length; 8 lanes take a row.
  __device__ __forceinline__ void unit(T* rows, int from, int to) const {
    constexpr int kLanesOfRow = kPrefillThreads / kChunk, kParts = kDim / 8 / kLanesOfRow;
    const int row = thread_index() / kLanesOfRow, part = thread_index() % kLanesOfRow * 8;
    const bool mine = row >= from && row < to;
    T* at = rows + row * Shape::kKeyStride + part;
    float x[kParts][8], squares = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      uint4 words{0, 0, 0, 0};
      if (mine) words = *reinterpret_cast<const uint4*>(at + i * kLanesOfRow * 8);
      unpack(words.x, x[i][0], x[i][1], T{}), unpack(words.y, x[i][2], x[i][3], T{});
      unpack(words.z, x[i][4], x[i][5], T{}), unpack(words.w, x[i][6], x[i][7], T{});
#pragma unroll
      for (int d = 0; d < 8; ++d) squares = fmaf(x[i][d], x[i][d], squares);
    }
    const float inverse = 1 / sqrtf(lane_sum(squares, kLanesOfRow) + call.settings.eps);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int d = 0; d < 8; ++d) x[i][d] *= inverse;
      const uint4 words{pack(x[i][0], x[i][1], T{}), pack(x[i][2], x[i][3], T{}), pack(x[i][4], x[i][5], T{}), pack(x[i][6], x[i][7], T{})};
      if (mine) *reinterpret_cast<uint4*>(at + i * kLanesOfRow * 8) = words;
    }
  }

  // The keys of the chunk as the next call gets them.
  __device__ __forceinline__ void put_keys(const T* keys, int c) const {
    if (block_index().x || block_index().y) return;
    constexpr int kParts = kDim / 8;
    for (int i = thread_index(); i < kChunk * kParts; i += kPrefillThreads) {
      const int r = i / kParts, part = i % kParts * 8;
      if (!is_node(c + r)) continue;
      T* to = static_cast<T*>(call.pending_key_out) + (head * call.nodes + c + r - plan.total) * kDim + part;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(keys + r * Shape::kKeyStride + part);
    }
  }

  // q . k of this warp's rows and the pairs [from, to] of 8 columns each.
  template <int kDepth>
  __device__ __forceinline__ void multiply_rows(const T* left, const T* right, int stride, int from, int to, float (*sum)[4]) const {
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

  // phi(q) S, and phi(q) z, summed over the four lanes of a row.
  __device__ __forceinline__ void multiply_state(float (&sum)[4][4], float (&total)[2]) const {
    float norm[4] = {};
#pragma unroll 2
    for (int k = 0; k < kFeatures; k += 16) {
      uint32_t a[4], b[4];
      load_left(phi_query(), Shape::kPhiStride, tile * 16, k, a);
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        load_right(state(), Shape::kPhiStride, n * 8, k, b);
        multiply(sum[n], a, b[0], b[1], T{}), multiply(sum[n + 1], a, b[2], b[3], T{});
      }
      if (!kHedge) continue;
      load_right(state(), Shape::kPhiStride, kPassColumns, k, b);
      multiply(norm, a, b[0], b[1], T{});
    }
    total[0] = norm[0], total[1] = norm[2];
  }

  // Weights of far keys before gains: the preceding chunk on and under the diagonal. Those in S, and the sinks, have no features.
  __device__ __forceinline__ void score_far(int turn, float (&weight)[9][4]) const {
    multiply_rows<kFeatures>(phi_query(), phi_key(turn), Shape::kPhiStride, 0, tile, weight);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (n / 2 > tile) continue;
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) {
          weight[n][e] *= Shape::kUnscale * Shape::kUnscale;
          if (n / 2 == tile && column(n, e) > row(u)) weight[n][e] = 0;
          sum += weight[n][e];
        }
      }
      put_stats(u, 0, 0, row_sum(sum));
    }
  }

  // Weights of local keys of the preceding chunk before gains: above the diagonal.
  __device__ __forceinline__ void score_before(int turn, int c, float (&weight)[9][4]) const {
    multiply_rows<kDim>(query(), key(turn + 1), Shape::kKeyStride, tile, 3, weight);
    const int attended = plan.attended - c + kChunk;  // the first column that is neither in S nor a sink
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float peak = -INFINITY, sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (n / 2 < tile) continue;
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) {
          weight[n][e] *= call.settings.scale;
          if (n / 2 == tile && column(n, e) <= row(u)) weight[n][e] = -INFINITY;
          if (attended > 0 && column(n, e) < attended) weight[n][e] = -INFINITY;
          peak = fmaxf(peak, weight[n][e]);
        }
      }
      peak = row_max(peak);
      const float base = peak == -INFINITY ? 0 : peak;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (n / 2 < tile) continue;
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) weight[n][e] = local_weight(kSoftmax, weight[n][e], base), sum += weight[n][e];
      }
      put_stats(u, peak, row_sum(sum), 0);
    }
  }

  // Weights of the present chunk and of the sinks before gains.
  __device__ __forceinline__ void score_present(int turn, int c, float (&weight)[9][4]) const {
    const Settings& settings = call.settings;
    multiply_rows<kDim>(query(), key(turn), Shape::kKeyStride, 0, tile, weight);
    if (settings.sinks)
#pragma unroll 2
      for (int k = 0; k < kDim; k += 16) {
        uint32_t a[4], b[4];
        load_left(query(), Shape::kKeyStride, tile * 16, k, a);
        load_right(at<T>(Memory::sink_key), Shape::kKeyStride, 0, k, b);
        multiply(weight[8], a, b[0], b[1], T{});
      }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float peak = -INFINITY, sum = 0;
#pragma unroll
      for (int n = 0; n < 9; ++n) {
        if (n < 8 ? n / 2 > tile : !settings.sinks) continue;
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) {
          const int j = n < 8 ? column(n, e) : column(0, e);
          weight[n][e] *= settings.scale;
          if (n == 8 && (j >= settings.sinks || j > c + row(u))) weight[n][e] = -INFINITY;
          if (n / 2 == tile && j > row(u)) weight[n][e] = -INFINITY;
          if (n < 8 && c < settings.sinks && c + j < settings.sinks) weight[n][e] = -INFINITY;
          peak = fmaxf(peak, weight[n][e]);
        }
      }
      if (kHedge) peak = row_max(peak);
#pragma unroll
      for (int n = 0; n < 9; ++n) {
        if (n < 8 ? n / 2 > tile : !settings.sinks) continue;
#pragma unroll
        for (int e = 2 * u; e < 2 * u + 2; ++e) weight[n][e] = local_weight(settings.local, weight[n][e], peak), sum += weight[n][e];
      }
      if (kHedge) put_stats(u, peak, row_sum(sum), 0);
    }
  }

  __device__ __forceinline__ void put_stats(int u, float peak, float near, float far) const {
    if (lane_index() % 4 == 0) store4(at<float>(Memory::stats) + (role * kChunk + row(u)) * 4, make_float4(peak, near, far, 0));
  }

  // What this warp's weights of row(u) are multiplied by.
  __device__ __forceinline__ float row_gain(int u) const {
    if (!kHedge) return role == kRemote ? alpha : local_scale;
    const auto stat = [&](Role of) { return load4(at<float>(Memory::stats) + (of * kChunk + row(u)) * 4); };
    const float4 before = stat(kBefore), present = stat(kPresent);
    const float peak = fmaxf(before.x, present.x), lift = __expf(before.x - peak), own = __expf(present.x - peak);
    const float near = fmaf(before.y, lift, present.y * own), far = stat(kFar).z + stat(kRemote).z;
    const Gains gain = gains(call.settings, Part::kWhole, alpha, local_scale, near, far);
    return role == kBefore ? gain.near * lift : role == kPresent ? gain.near * own : gain.far;
  }

  // Final weights times values, onto `sum`.
  __device__ __forceinline__ void combine(int turn, const float (&gain)[2], float (&weight)[9][4], float (&sum)[4][4]) const {
    const float* conv = at<float>(Memory::conv);
    const int shift = role == kPresent ? 0 : kChunk;
    const T* values = value(role == kPresent ? turn : turn + 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool filtered = role != kFar && shift + (tile - i) * 16 - 15 < call.settings.taps;  // some of its lags are
      if (role == kBefore ? (kHedge ? i < tile : !filtered) : i > tile) continue;
#pragma unroll
      for (int n = 2 * i; n < 2 * i + 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          weight[n][e] *= gain[e / 2];
          if (!filtered) continue;
          const int lag = shift + row(e / 2) - column(n, e);
          if ((unsigned)lag < (unsigned)kMostTaps) weight[n][e] += conv[lag];
        }
      const uint32_t a[4] = {pack(weight[2 * i][0], weight[2 * i][1], T{}), pack(weight[2 * i][2], weight[2 * i][3], T{}),
                             pack(weight[2 * i + 1][0], weight[2 * i + 1][1], T{}), pack(weight[2 * i + 1][2], weight[2 * i + 1][3], T{})};
      multiply_values(a, values, i * 16, sum);
    }
    if (role != kPresent || !call.settings.sinks) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) weight[8][e] *= gain[e / 2];
    const uint32_t a[4] = {pack(weight[8][0], weight[8][1], T{}), pack(weight[8][2], weight[8][3], T{}), 0, 0};
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

  // Where the parts of the sum meet; kRemote has its own in registers.
  __device__ float* partial(int of, int n) const { return at<float>(Memory::partial) + (((of * 4 + tile) * 4 + n) * kLanes + lane_index()) * 4; }
  __device__ __forceinline__ void put_output(int c, float (&sum)[4][4]) const {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < kRemote; ++i) {
        if (!kHedge && i == kFar) continue;
        const float4 other = load4(partial(i, n));
        sum[n][0] += other.x, sum[n][1] += other.y, sum[n][2] += other.z, sum[n][3] += other.w;
      }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (!is_node(c + row(u))) continue;
      T* out = static_cast<T*>(call.output) + node_row(c + row(u)) * kDim + start;
#pragma unroll
      for (int n = 0; n < 4; ++n) *reinterpret_cast<uint32_t*>(out + column(n, 0)) = pack(sum[n][2 * u], sum[n][2 * u + 1], T{});
    }
  }

  // Take the chunk that S lacks for the next one into it.
  __device__ __forceinline__ void fold(int turn, StateSlice<kFeatures>& slice) const {
    slice.template fold<1>(value(kHedge ? turn + 2 : turn), phi_key(turn), Shape::kPhiStride, 0, Shape::kUnscale, kHedge && slice.has_norm(), kChunk);
    measure(slice);
  }

  __device__ __forceinline__ void run() const {
    StateSlice<kFeatures> slice;
    open(slice);
    float unscale = publish(slice) * Shape::kUnscale;
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
      float weight[9][4] = {}, sum[4][4] = {};
      if (role == kRemote) {
        float total[2];
        multiply_state(sum, total);
        if (kHedge) put_stats(0, 0, 0, row_sum(total[0]) * unscale), put_stats(1, 0, 0, row_sum(total[1]) * unscale);
      } else if (role == kPresent) {
        score_present(turn, c, weight);
      } else if (kHedge) {
        if (role == kFar) score_far(turn, weight);
        if (role == kBefore) score_before(turn, c, weight);
      }
      sync_block();
      if (more) stage(turn + 1, c + kChunk);
      if (kHedge || role != kFar) {
        const float gain[2] = {row_gain(0), row_gain(1)};
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[n][e] *= gain[e / 2] * unscale;
        if (role != kRemote) {
          combine(turn, gain, weight, sum);
#pragma unroll
          for (int n = 0; n < 4; ++n) store4(partial(role, n), make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
        }
      }
      if (more) {
        if (!kHedge && c < call.settings.sinks) {  // sinks never enter S
          for (int i = thread_index(); i < call.settings.sinks - c; i += kPrefillThreads)
            for (int d = 0; d < kDim; ++d) key(turn)[i * Shape::kKeyStride + d] = from_float<T>(0);
          sync_block();
        }
        fold(turn, slice);
      }
      sync_block();
      if (more) unscale = publish(slice) * Shape::kUnscale;
      if (role == kRemote) put_output(c, sum);
    }
  }
};

template <Map kMap, int kDim, typename T>
__global__ void __launch_bounds__(kPrefillThreads, 1) attend_kernel(const Call given, const Layout, int ring) {
  Call call = given;
  Layout unused{};
  FixedPreset<kMap, kDim>::fix(call, unused);
  const Attend<kMap, kDim, T> attend(call, ring);
  attend.run();
}

}  // namespace lineahead::cuda
