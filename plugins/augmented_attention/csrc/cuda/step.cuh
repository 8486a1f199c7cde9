// The whole call in one launch: commit, then attend from every node.
#pragma once

#include "attend.cuh"

namespace lineahead::cuda {

template <int kRows, typename T>
__device__ void step(const Call& call, const Layout& layout, int ring) {
  pass_unused(call);
  Block<T> block(call, layout, ring);
  fetch_state(block);
  fetch_maps(block);
  fetch_columns(block);
  if (thread_index() == 0) block.tables.flags[0] = 0;
  fill_tables(call, block.plan, block.b, block.tables);
  fold<kRows>(block);
  wait_copies();
  sync_block();
  const int rows = call.heads / call.shared * call.nodes, row_blocks = grid_size().y;
  const int parts = normalizes_rows(call.settings) ? 2 : 1;
  for (int index = block_index().y; index < layout.tiles; index += row_blocks) {
    Tile tile;
    tile.start = index * layout.tile, tile.count = least(layout.tile, rows - tile.start);
    tile.nodes = call.nodes, tile.first_head = block.g * (call.heads / call.shared);
    for (int p = 0; p < parts; ++p) {
      const Part part = parts == 1 ? Part::kWhole : p == 0 ? Part::kRow : Part::kRest;
      load_queries<kRows>(block, tile);
      score(block, tile, index == 0 && block.slice == 0);
      score_far<kRows>(block, tile);
      for (int i = warp_index(); i < tile.count; i += kWarps) weigh_row(block, tile, i, part);
      sync_block();
      if (index + row_blocks >= layout.tiles && p + 1 == parts) {
        arrive(block);
        write_state(block, block.tables.flags[1] != 0, block.tables.flags[2] != 0);
      }
      combine<kRows>(block, tile, part);
    }
  }
}

// Divides rows by themselves, from the two parts in `workspace`; a warp takes one.
template <typename T>
__device__ void normalize_rows(const Call& call) {
  const size_t rows = (size_t)call.batch * call.heads * call.nodes, all = rows * call.value_dim;
  const size_t row = (size_t)block_index().x * kWarps + warp_index();
  if (row >= rows) return;
  const int h = row / call.nodes % call.heads, scope = call.settings.normalizes;
  const float *first = static_cast<const float*>(call.workspace) + row * call.value_dim, *rest = first + all;
  float squares = 0;
  for (int j = lane_index(); j < call.value_dim; j += kLanes) squares = fmaf(first[j], first[j], squares);
  float factor = row_factor(call.settings, lane_sum(squares), call.value_dim);
  if (scope == kGlobal) factor *= to_float(static_cast<const T*>(call.alpha)[h * call.alpha_step]);
  if (scope == kLocal) factor *= to_float(static_cast<const T*>(call.local_scale)[h * call.local_scale_step]);
  T* out = static_cast<T*>(call.output) + row * call.value_dim;
  for (int j = lane_index(); j < call.value_dim; j += kLanes) out[j] = from_float<T>(fmaf(factor, first[j], rest[j]));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const Call call, const Layout, int) {
  normalize_rows<T>(call);
}

template <int kRows, typename T>
__global__ void __launch_bounds__(kThreads) step_kernel(const Call call, const Layout layout, int ring) {
  step<kRows, T>(call, layout, ring);
}

}  // namespace lineahead::cuda
