// Calls whose numbers the compiler may know: the streaming kernel of such a call is half as long.
#pragma once

#include "layout.h"

namespace lineahead::cuda {

// Any call.
struct AnyPreset {
  static bool matches(const Call&) { return true; }
  __host__ __device__ static void fix(Call&, Layout&) {}
};

// The presets softmax-hedgehog and augmented, but for window, taps and sinks, with heads of kDim.
template <Map kMap, int kDim>
struct FixedPreset {
  static constexpr Map kFeatureMap = kMap;
  static constexpr int kHeadDim = kDim;
  __host__ __device__ static void fix(Call& call, Layout& layout) {
    constexpr bool kHedge = kMap == kHedgehog;
    Settings& settings = call.settings;
    settings.map = kMap, settings.local = kHedge ? kSoftmax : kRelu2, settings.pattern = kHedge ? kSliding : kGrouped;
    settings.normalizer = kHedge ? kDenominator : kNoNormalizer, settings.normalizes = kAll;
    settings.qk_norm = !kHedge, settings.local_norm = 0;
    call.dim = call.value_dim = kDim, call.features = kHedge ? 2 * kDim : kDim, call.columns = kHedge ? kDim : 0;
    layout.key_stride = layout.row_stride = kDim + 8, layout.phi_stride = call.features + 4, layout.projected = kDim <= 64 ? 64 : kDim;
    layout.key_shift = kDim == 64 ? 3 : 4;
  }
  static bool matches(const Call& call) {
    Call fixed = call;
    Layout layout{};
    fix(fixed, layout);
    const Settings &a = call.settings, &b = fixed.settings;
    return a.map == b.map && a.local == b.local && a.pattern == b.pattern && a.normalizer == b.normalizer && a.normalizes == b.normalizes &&
           a.qk_norm == b.qk_norm && a.local_norm == b.local_norm && call.dim == fixed.dim && call.value_dim == fixed.value_dim &&
           call.features == fixed.features && call.columns == fixed.columns;
  }
};

// A call of one query row a block.
__host__ __device__ inline void fix_single(Call& call, Layout& layout) {
  call.heads = call.shared, call.nodes = 1;
  layout.tile = layout.tiles = layout.row_blocks = layout.words = 1;
}

}  // namespace lineahead::cuda
