#include <algorithm>

#include "layout.h"

namespace lineahead::cuda {

namespace {

constexpr int kWarpCount = 8, kMostRows = 16, kMostTiles = 16, kMostColumns = 256;  // of stream_map.cuh and stream_attend.cuh
constexpr int kWaves = 2;  // blocks a processor that tiles are spread over

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

int shift_of(int parts) {
  int shift = 0;
  while (1 << shift < parts) ++shift;
  return shift;
}

// Keys that may need features in one call, at most: KeyList of stream.cuh.
int most_listed(const Call& call) {
  const Settings& settings = call.settings;
  const int accepted = call.pending ? call.accepted : 0, nodes = call.nodes, window = settings.window;
  if (!has_state(settings)) return 0;
  if (settings.pattern == kNoPattern) return accepted + nodes;
  if (settings.pattern == kSliding) return accepted + std::min(window, nodes) - 1 + (nodes > window ? nodes : 0);
  return std::min(window - 1 + accepted, up(accepted + nodes - 1, window)) + (nodes > 1 ? nodes : 0);
}

// Features of the kernel that serves so many: launch.cu.
int kept_features(int features) { return features <= 128 ? up(features, 64) : features <= 256 ? 256 : 512; }

// `together`: queries are mapped with the first keys, in more room.
Layout cut(const Call& call, int passes, int most_blocks, bool together) {
  const Settings& settings = call.settings;
  const int rows = call.heads / call.shared * call.nodes, features = has_state(settings) ? call.features : 0;
  Layout layout{};
  layout.passes = passes, layout.slice = passes * kPassColumns;
  layout.slices = (call.value_dim + layout.slice - 1) / layout.slice;
  layout.tile = std::min(rows, kMostRows), layout.tiles = (rows + layout.tile - 1) / layout.tile, layout.row_blocks = 1;
  if (passes == 1) layout.row_blocks = std::clamp(most_blocks / (call.batch * call.shared * layout.slices), 1, layout.tiles);
  layout.key_rows = most_listed(call);
  layout.key_shift = shift_of(call.dim / 8), layout.value_shift = shift_of(layout.slice / 8);
  layout.first_node = ring_rows(settings) + settings.sinks + (call.pending ? call.accepted : 0);
  layout.columns = up(layout.first_node + call.nodes, 8);
  layout.words = (call.nodes + 31) / 32;
  layout.key_stride = layout.row_stride = call.dim + 8;
  layout.value_stride = layout.slice + 16;
  layout.phi_stride = features + 4, layout.weight_stride = layout.columns + 4;
  layout.projected = call.columns <= 64 ? 64 : call.columns <= 128 ? 128 : 256;
  const int parts = kWarpCount / (layout.projected / 64), keys = std::min(layout.key_rows, kMostRows);
  layout.mapped = together ? layout.tile + keys : std::max(layout.tile, keys);
  Allocator memory;
  layout.key = memory.take(layout.columns * layout.key_stride * 2);
  layout.value = memory.take(layout.columns * layout.value_stride * 2);
  layout.row = memory.take(layout.tile * layout.row_stride * 2);
  layout.weight = memory.take_floats(layout.tile * layout.weight_stride);
  layout.phi_query = memory.take_floats(layout.tile * layout.phi_stride);
  layout.phi = memory.take_floats(layout.key_rows * layout.phi_stride);
  layout.state = memory.take_floats(layout.tiles > layout.row_blocks ? kept_features(features) * kPassColumns : 0);
  layout.norm = memory.take_floats(features);
  const int projections = call.columns ? layout.mapped * parts * layout.projected : 0;
  layout.partial = memory.take_floats(std::max(projections, 2 * kWarpCount * layout.tile * kPassColumns));
  layout.length = memory.take_floats(layout.columns + layout.tile);
  layout.position = memory.take(layout.columns * 4);
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
  // A block that takes more columns maps fewer features twice, as long as three blocks are left for two processors.
  while (sweeps && !call.slice && passes < all && call.batch * call.shared * ((all + 2 * passes - 1) / (2 * passes)) * 2 >= 3 * device.processors)
    passes *= 2;
  for (passes = std::max(std::min(passes, all), 1); passes; passes /= 2) {
    for (const bool together : {true, false}) {
      const Layout layout = cut(call, passes, kWaves * device.processors, together);
      if (layout.bytes <= device.shared_memory) return layout;
    }
  }
  return {};
}

}  // namespace lineahead::cuda
