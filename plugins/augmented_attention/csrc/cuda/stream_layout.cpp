#include <algorithm>

#include "layout.h"

namespace lineahead::cuda {

namespace {

constexpr int kWarpCount = 8, kMostRows = 16, kMostTiles = 16, kMostColumns = 256;  // stream_attend.cuh
constexpr int kWaves = 2;  // blocks a processor that are worth having before blocks take more columns

int up(int n, int step) { return (n + step - 1) / step * step; }

struct Allocator {
  int used = 0;

  int take(int bytes) {
    const int start = used;
    used = up(used + bytes, 16);
    return start;
  }
  int take_floats(int count) { return take(count * 4); }
};

// Columns that some node may see through the feature map, at most.
int most_far(const Call& call) {
  return call.nodes == 1 ? 1 : call.nodes + (call.settings.pattern == kGrouped ? call.settings.window - 1 : 0);
}

Layout cut(const Call& call, int passes, bool keeps_far) {
  const Settings& settings = call.settings;
  const int rows = call.heads / call.shared * call.nodes, features = has_state(settings) ? call.features : 0;
  Layout layout{};
  layout.passes = passes, layout.slice = passes * kPassColumns;
  layout.slices = (call.value_dim + layout.slice - 1) / layout.slice;
  layout.tile = std::min(rows, kMostRows), layout.tiles = (rows + layout.tile - 1) / layout.tile, layout.row_blocks = 1;
  layout.fold_tile = features ? std::clamp(most_folds(call), 1, kMostRows) : 0;
  layout.far_tile = !features ? 0 : keeps_far ? most_far(call) : std::min(most_far(call), kMostRows);
  layout.first_node = ring_rows(settings) + settings.sinks + (call.pending ? call.accepted : 0);
  layout.columns = up(layout.first_node + call.nodes, 8);
  layout.words = (call.nodes + 31) / 32;
  layout.key_stride = layout.row_stride = call.dim + 8;
  layout.value_stride = layout.slice + 16;
  layout.phi_stride = features + 4, layout.weight_stride = layout.columns + 4;
  layout.projected = call.columns <= 64 ? 64 : call.columns <= 128 ? 128 : 256;
  const int groups = layout.projected / 64, widest = std::max({layout.tile, layout.fold_tile, std::min(layout.far_tile, kMostRows)});
  Allocator memory;
  layout.key = memory.take(layout.columns * layout.key_stride * 2);
  layout.value = memory.take(layout.columns * layout.value_stride * 2);
  layout.row = memory.take(layout.tile * layout.row_stride * 2);
  layout.weight = memory.take_floats(layout.tile * layout.weight_stride);
  layout.phi_query = memory.take_floats(layout.tile * layout.phi_stride);
  layout.phi = memory.take_floats(layout.fold_tile * layout.phi_stride);
  layout.phi_far = memory.take_floats(layout.far_tile * layout.phi_stride);
  layout.norm = memory.take_floats(features);
  const int projections = call.columns ? 2 * (kWarpCount / groups) * widest * layout.projected : 0;
  layout.partial = memory.take_floats(std::max(projections, 2 * kWarpCount * layout.tile * kPassColumns));
  layout.length = memory.take_floats(layout.columns + layout.tile);
  layout.position = memory.take(layout.columns * 4);
  layout.source = memory.take((layout.fold_tile + 1) * 4);
  layout.far = memory.take(layout.columns * 4);
  layout.node = memory.take(call.nodes * 4);
  layout.start = memory.take(call.nodes * 4);
  layout.gain = memory.take_floats(call.heads / call.shared * (2 + settings.taps));
  layout.ancestors = memory.take(call.nodes * layout.words * 4);
  layout.flags = memory.take(16);
  layout.bytes = memory.used;
  return layout;
}

bool serves(const Call& call) {
  const int rows = call.heads / call.shared * call.nodes;
  const int columns = ring_rows(call.settings) + call.settings.sinks + (call.pending ? call.accepted : 0) + call.nodes;
  return columns <= kMostColumns && call.type != kFloat && call.dim % 16 == 0 && call.columns % 8 == 0 && call.features % 8 == 0 && call.columns <= 256 &&
         call.features <= 512 && rows <= kMostRows * kMostTiles && call.nodes <= 64 && !normalizes_rows(call.settings);
}

}  // namespace

Layout make_stream_layout(const Call& call, const Device& device) {
  if (!serves(call)) return {};
  const int all = (call.value_dim + kPassColumns - 1) / kPassColumns;
  int passes = 1;
  const bool sweeps = call.heads / call.shared * call.nodes <= kMostRows;
  if (sweeps && call.slice) passes = std::min(call.slice / kPassColumns, all);
  while (sweeps && !call.slice && passes < all && call.batch * call.shared * ((all + 2 * passes - 1) / (2 * passes)) >= kWaves * device.processors)
    passes *= 2;
  for (passes = std::max(std::min(passes, all), 1); passes; passes /= 2) {
    for (const bool keeps_far : {true, false}) {
      Layout layout = cut(call, passes, keeps_far);
      if (layout.bytes > device.shared_memory) continue;
      if (passes == 1) layout.row_blocks = std::clamp(kWaves * device.processors / (call.batch * call.shared * layout.slices), 1, layout.tiles);
      return layout;
    }
  }
  return {};
}

}  // namespace lineahead::cuda
