// Features of whole chunks: softmax(x W) and softmax(-x W), and the kernel that leaves those of a call in its workspace.
// Zhang et al., 2024, arXiv:2402.04347.
#pragma once

#include "prefill_tiles.cuh"

namespace lineahead::cuda {

constexpr int kStatBytes = kRoles * kChunk * 4 * 4;  // four floats of each row from each role

// put(row, column, ..) gets features column and column + 1 of both softmaxes, times kPhiScale. A warp takes 16 rows and a quarter of the
// columns; x, w and `stats` may be written again by then. Synchronises once.
template <int kDim, typename T, typename Put>
__device__ __forceinline__ void map_chunk(const T* x, const T* w, float* stats, Put put) {
  constexpr int kStride = kDim + 8, kTiles = kDim / kRoles / 8;
  const int tile = warp_index() % 4, role = warp_index() / 4, first = role * (kDim / kRoles), q = lane_index() % 4;
  float z[kTiles][4] = {}, down[kTiles][4];
#pragma unroll 4
  for (int k = 0; k < kDim; k += 16) {
    uint32_t a[4];
    load_left(x, kStride, tile * 16, k, a);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      load_right_transposed(w, kStride, k, first + n * 8, b);
      multiply(z[n], a, b[0], b[1], T{}), multiply(z[n + 1], a, b[2], b[3], T{});
    }
  }
  float4 own[2];
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    float top = -INFINITY, bottom = -INFINITY, up = 0, low = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 2 * u; e < 2 * u + 2; ++e) top = fmaxf(top, z[n][e]), bottom = fmaxf(bottom, -z[n][e]);
    top = row_max(top), bottom = row_max(bottom);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 2 * u; e < 2 * u + 2; ++e) {
        down[n][e] = __expf(-z[n][e] - bottom), low += down[n][e];
        z[n][e] = __expf(z[n][e] - top), up += z[n][e];
      }
    own[u] = make_float4(top, bottom, row_sum(up), row_sum(low));
    if (q == 0) store4(stats + (role * kChunk + tile * 16 + u * 8 + lane_index() / 4) * 4, own[u]);
  }
  sync_block();
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int row = tile * 16 + u * 8 + lane_index() / 4;
    float4 all[kRoles];
    float top = own[u].x, bottom = own[u].y, up = 0, low = 0;
#pragma unroll
    for (int i = 0; i < kRoles; ++i) {
      all[i] = load4(stats + (i * kChunk + row) * 4);
      top = fmaxf(top, all[i].x), bottom = fmaxf(bottom, all[i].y);
    }
#pragma unroll
    for (int i = 0; i < kRoles; ++i) up = fmaf(all[i].z, __expf(all[i].x - top), up), low = fmaf(all[i].w, __expf(all[i].y - bottom), low);
    const float a = kPhiScale * __expf(own[u].x - top) / up, b = kPhiScale * __expf(own[u].y - bottom) / low;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      put(row, first + n * 8 + q * 2, a * z[n][2 * u], a * z[n][2 * u + 1], b * down[n][2 * u], b * down[n][2 * u + 1]);
  }
}

// Start copying a projection [kDim, kDim] to rows of kDim + 8.
template <int kDim, typename T>
__device__ __forceinline__ void stage_map(T* to, const void* maps, int head) {
  const T* from = static_cast<const T*>(maps) + (size_t)head * kDim * kDim;
#pragma unroll 4
  for (int i = thread_index(); i < kDim * kDim / 8; i += kPrefillThreads) copy_async(to + i / (kDim / 8) * (kDim + 8) + i % (kDim / 8) * 8, from + i * 8);
}

__host__ __device__ inline int chunk_count(const Call& call) { return (call.nodes + kChunk - 1) / kChunk; }

// Where features of one head's chunk are in the workspace, [kChunk, F]: those of queries, then those of keys. Of keys, chunk i is
// the one before the i-th of the nodes.
template <typename T>
__device__ __forceinline__ T* features_at(const Call& call, int b, int head, int chunk) {
  const size_t chunks = chunk_count(call), of_queries = (size_t)call.batch * call.heads;
  const size_t row = head < call.heads ? (size_t)b * call.heads + head : of_queries + (size_t)b * call.shared + head - call.heads;
  return static_cast<T*>(call.workspace) + (row * chunks + chunk) * kChunk * call.features;
}

template <int kDim>
struct FeatureMemory {
  using Shape = PrefillShape<kHedgehog, kDim>;
  static constexpr int map = 0, row = Shape::kMapBytes > Shape::kPhiBytes ? Shape::kMapBytes : Shape::kPhiBytes;
  static constexpr int stats = row + Shape::kKeyBytes, bytes = stats + kStatBytes;
};

// Features of one chunk of one head: y counts query heads, then key heads. A key that S has already, or never gets, has none.
template <int kDim, typename T>
__device__ void map_features(const Call& call, int ring) {
  using Shape = PrefillShape<kHedgehog, kDim>;
  using Memory = FeatureMemory<kDim>;
  const int chunk = block_index().x, head = block_index().y, b = block_index().z;
  const bool is_key = head >= call.heads;
  char* shared = shared_memory();
  T *map = reinterpret_cast<T*>(shared + Memory::map), *rows = reinterpret_cast<T*>(shared + Memory::row);
  stage_map<kDim>(map, is_key ? call.key_map : call.query_map, is_key ? head - call.heads : head);
  const Plan plan = make_plan(call, ring, b);
  const int position = plan.total - kChunk + chunk * kChunk;
  const size_t index = is_key ? (size_t)b * call.shared + head - call.heads : (size_t)b * call.heads + head;
  stage_chunk<kDim>(rows, Shape::kKeyStride, [&](int r) {
    if (is_key) return row_at<kDim, T>(call, plan, index, call.window_key_out, call.key, position + r);
    const int node = chunk * kChunk + r;
    return node < call.nodes ? static_cast<const T*>(call.query) + (index * call.nodes + node) * kDim : nullptr;
  });
  wait_copies();
  sync_block();
  T* phi = map;
  map_chunk<kDim>(rows, map, reinterpret_cast<float*>(shared + Memory::stats), [&](int row, int column, float a, float b, float c, float d) {
    T* to = phi + row * Shape::kPhiStride + column;
    *reinterpret_cast<uint32_t*>(to) = pack(a, b, T{}), *reinterpret_cast<uint32_t*>(to + kDim) = pack(c, d, T{});
  });
  sync_block();
  T* out = features_at<T>(call, b, head, chunk);
  constexpr int kParts = Shape::kFeatures / 8;
#pragma unroll 4
  for (int i = thread_index(); i < kChunk * kParts; i += kPrefillThreads) {
    const int r = i / kParts, part = i % kParts * 8;
    uint4 numbers = *reinterpret_cast<const uint4*>(phi + r * Shape::kPhiStride + part);
    if (is_key && position + r < plan.attended) numbers = uint4{0, 0, 0, 0};
    *reinterpret_cast<uint4*>(out + (size_t)i * 8) = numbers;
  }
}

template <int kDim, typename T>
__global__ void __launch_bounds__(kPrefillThreads, 2) features_kernel(const Call given, const Layout, int ring) {
  Call call = given;
  Layout unused{};
  FixedPreset<kHedgehog, kDim>::fix(call, unused);
  map_features<kDim, T>(call, ring);
}

}  // namespace lineahead::cuda
