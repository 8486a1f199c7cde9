// How a call is cut into blocks, and where a block keeps what in shared memory. Host and device.
#pragma once

#include "call.h"

namespace lineahead::cuda {

// A block serves one sequence, one key/value head, `slice` columns of the value dimension and every `row_blocks`-th tile of
// `tile` query rows. Offsets are in bytes.
struct Layout {
  int slice, slices;
  int tile, tiles, row_blocks;
  int fold_tile;        // keys that are mapped at a time
  int columns;          // most columns that attention can see: sinks, ring, nodes; a multiple of 4
  int weight_stride;    // floats a row of `weight`: features, then columns
  int key_stride;       // elements a row of `key`; 0 when keys are not staged
  int words;            // 32-bit words a row of `ancestors`
  int state, norm, weight, row, phi, fold_value, partial, key, value, position, source, far, node, ancestors, flags;
  int bytes;
  // Of the streaming kernel (stream.cuh) alone.
  int passes;            // a block takes its columns so many at a time as kPassColumns
  int first_node;        // columns before the nodes: rows of the window, rows that may be accepted
  int value_stride, phi_stride, row_stride, projected;  // elements a row of `value`, `phi` and `row`; floats a row of `partial`
  int key_rows;          // keys that may need features, at most
  int mapped;            // rows that are mapped at a time, at most
  int key_shift, value_shift;  // 1 << of them is no less than 8ths of `dim` and `slice`
  int phi_query, length, start, gain;  // offsets
};

constexpr int kPassColumns = 32;

struct Device {
  int processors;     // streaming multiprocessors
  int shared_memory;  // bytes a block may have
};

#ifdef __CUDACC__
#define LINEAHEAD_BOTH __host__ __device__
#else
#define LINEAHEAD_BOTH
#endif

// schema.AttentionSettings's properties of these names.
LINEAHEAD_BOTH inline bool has_state(const Settings& settings) { return settings.map != kNoMap; }
LINEAHEAD_BOTH inline bool has_norm(const Settings& settings) {
  return has_state(settings) && settings.normalizer == kDenominator && settings.normalizes != kLocal;
}
LINEAHEAD_BOTH inline bool normalizes_rows(const Settings& settings) {
  return settings.normalizer == kL2 || settings.normalizer == kRms;
}

// Keys that one commit can fold, at most.
inline int most_folds(const Call& call) {
  return call.pending ? call.accepted + (call.settings.pattern == kGrouped ? call.settings.window - 1 : 0) : 0;
}

int ring_rows(const Settings& settings);
int rows_per_thread(const Call& call);

// The layout of `call` on `device`; bytes is 0 when there is none.
Layout make_layout(const Call& call, const Device& device);

// The same for the streaming kernel; bytes is 0 when it does not serve the call.
Layout make_stream_layout(const Call& call, const Device& device);

}  // namespace lineahead::cuda
