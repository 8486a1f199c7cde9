#include "layout.h"

#include <algorithm>

namespace lineahead::cuda {

namespace {

constexpr int kSlices[] = {128, 64, 32, 16};
constexpr int kBlocksPerProcessor = 3;  // worth having, so that one block's waits are another's work
constexpr int kWarpCount = 8, kProductFloats = kWarpCount * 128;  // numbers.cuh, product.cuh

int element_bytes(const Call& call) { return call.type == kFloat ? 4 : 2; }

int up(int n, int step) { return (n + step - 1) / step * step; }

// Assigns shared memory, front to back.
struct Allocator {
  int used = 0;

  int take(int bytes) {
    const int start = used;
    used = up(used + bytes, 128);
    return start;
  }
  int take_floats(int count) { return take(count * 4); }
};

Layout cut(const Call& call, int slice, bool staged) {
  const Settings& settings = call.settings;
  const int rows = call.heads / call.shared * call.nodes, per_thread = rows_per_thread(call);
  const int features = settings.map == kNoMap ? 0 : call.features, element = element_bytes(call);
  Layout layout{};
  layout.slice = slice, layout.slices = (call.value_dim + slice - 1) / slice;
  layout.tile = rows == 1 ? 1 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
  layout.tiles = (rows + layout.tile - 1) / layout.tile;
  layout.fold_tile = rows == 1 ? 8 : 16;
  layout.columns = up(ring_rows(settings) + settings.sinks + call.nodes, 4);
  layout.weight_stride = features + layout.columns;
  layout.key_stride = staged ? call.dim + (call.dim * element % 128 ? 0 : 64 / element) : 0;
  layout.words = (call.nodes + 31) / 32;
  const int row_count = std::max(layout.tile, layout.fold_tile) + per_thread - 1;
  Allocator memory;
  layout.state = memory.take_floats(features * slice);
  layout.norm = memory.take_floats(has_norm(settings) ? features : 0);
  layout.weight = memory.take_floats(layout.tile * layout.weight_stride);
  layout.row = memory.take_floats(row_count * call.dim);
  layout.phi = memory.take_floats(layout.fold_tile * features);
  layout.fold_value = memory.take_floats(features ? layout.fold_tile * slice : 0);
  layout.partial = memory.take_floats(kProductFloats * per_thread);
  layout.key = memory.take(layout.columns * layout.key_stride * element);
  layout.value = memory.take(layout.columns * slice * element);
  layout.position = memory.take(layout.columns * 4);
  layout.source = memory.take(layout.columns * 4);
  layout.far = memory.take(layout.columns * 4);
  layout.node = memory.take(call.nodes * 4);
  layout.ancestors = memory.take(call.nodes * layout.words * 4);
  layout.flags = memory.take(16);
  layout.bytes = memory.used;
  return layout;
}

}  // namespace

int ring_rows(const Settings& settings) {
  return std::max({settings.pattern == kNoPattern ? 0 : settings.window, settings.taps - 1, 1});
}

int rows_per_thread(const Call& call) { return call.heads == call.shared && call.nodes == 1 ? 1 : 4; }

Layout make_layout(const Call& call, const Device& device) {
  Layout chosen{};
  for (const bool staged : {true, false}) {
    for (const int slice : kSlices) {
      if (call.slice ? slice != call.slice : slice > 16 && slice >= 2 * call.value_dim) continue;
      const Layout layout = cut(call, slice, staged);
      if (layout.bytes > device.shared_memory) continue;
      chosen = layout;
      const bool full = call.batch * call.shared * layout.slices * 8 >= device.processors * 7;
      if (full && layout.bytes * kBlocksPerProcessor <= device.shared_memory) break;
    }
    if (chosen.bytes) break;
  }
  if (!chosen.bytes) return chosen;
  const int blocks = call.batch * call.shared * chosen.slices;
  chosen.row_blocks = std::clamp(2 * device.processors / blocks, 1, chosen.tiles);
  return chosen;
}

}  // namespace lineahead::cuda
