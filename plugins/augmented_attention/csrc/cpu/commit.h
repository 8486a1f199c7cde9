// The commit: accepted rows of the previous call enter the ring, and what leaves the group or window is folded into S.
#pragma once

#include "plan.h"

namespace lineahead {

// Everything of batch row b and key/value head g that the commit reads and writes. Input and output may be the same memory.
struct Held {
  const float *state, *norm, *key, *value, *pending_key, *pending_value;
  float *state_out, *norm_out, *key_out, *value_out;

  Held(const Call& call, int b, int g) {
    const size_t head = (size_t)b * call.shared + g, window = head * call.window_rows, rows = head * call.pending;
    state = call.state + head * call.state_size(), state_out = call.state_out + head * call.state_size();
    norm = call.norm + head * call.features, norm_out = call.norm_out + head * call.features;
    key = call.window_key + window * call.dim, key_out = call.window_key_out + window * call.dim;
    value = call.window_value + window * call.value_dim, value_out = call.window_value_out + window * call.value_dim;
    pending_key = call.pending_key + rows * call.dim, pending_value = call.pending_value + rows * call.value_dim;
  }
};

inline void copy(const float* from, float* to, size_t count) {
  if (from != to) std::memcpy(to, from, count * sizeof(float));
}

// S += phi(k)^T v and z += phi(k) over positions [first, last): rows of the ring as it was, or accepted rows.
inline void fold(const Call& call, const Held& held, const int64_t* accepted, const float* map, int64_t before,
                 int64_t first, int64_t last) {
  Frame frame;
  const int count = (int)(last - first), features = call.features;
  float* key = frame.take<float>((size_t)count * call.dim);
  float* value = frame.take<float>((size_t)count * call.value_dim);
  float* phi = frame.take<float>((size_t)count * features);
  for (int i = 0; i < count; ++i) {
    const int64_t position = first + i;
    const bool ring = position < before;
    const int64_t row = ring ? position % call.rows : accepted[position - before];
    copy((ring ? held.key : held.pending_key) + row * call.dim, key + (size_t)i * call.dim, call.dim);
    copy((ring ? held.value : held.pending_value) + row * call.value_dim, value + (size_t)i * call.value_dim,
         call.value_dim);
  }
  call.settings.map->apply(key, count, call.dim, call.dim, map, call.columns, phi);
  multiply(features, call.value_dim, count, Strided{phi, 1, features}, value, call.value_dim, held.state, held.state_out,
           call.value_dim);
  if (!call.settings.has_norm()) return;
  copy(held.norm, held.norm_out, features);
  for (int i = 0; i < count; ++i)
    for (int f = 0; f < features; ++f) held.norm_out[f] += phi[(size_t)i * features + f];
}

// Commit batch row b, key/value head g, and write this call's (normalised) keys to pending_key_out.
inline void commit(const Call& call, int b, int g, const Plan& plan) {
  const Settings& settings = call.settings;
  const Held held(call, b, g);
  const int64_t* accepted = call.accept_index + (size_t)b * call.accepted;
  if (settings.has_state()) {
    const int64_t first = std::max<int64_t>(settings.folded(plan.before), settings.sinks);
    const int64_t last = settings.folded(plan.total);
    if (last > first) {
      fold(call, held, accepted, call.key_map + (size_t)g * call.dim * call.columns, plan.before, first, last);
    } else {
      copy(held.state, held.state_out, call.state_size());
      if (settings.has_norm()) copy(held.norm, held.norm_out, call.features);
    }
  }
  copy(held.key, held.key_out, (size_t)call.window_rows * call.dim);
  copy(held.value, held.value_out, (size_t)call.window_rows * call.value_dim);
  const auto place = [&](int64_t position, int64_t row) {
    const int64_t from = accepted[position - plan.before];
    copy(held.pending_key + from * call.dim, held.key_out + row * call.dim, call.dim);
    copy(held.pending_value + from * call.value_dim, held.value_out + row * call.value_dim, call.value_dim);
  };
  for (int64_t p = std::max(plan.before, plan.total - call.rows); p < plan.total; ++p) place(p, p % call.rows);
  for (int64_t p = plan.before; p < std::min<int64_t>(plan.total, settings.sinks); ++p) place(p, call.rows + p);
  const size_t nodes = ((size_t)b * call.shared + g) * call.nodes * call.dim;
  for (int t = 0; t < call.nodes; ++t) {
    const size_t row = nodes + (size_t)t * call.dim;
    if (settings.qk_norm)
      unit_row(call.key + row, call.dim, settings.eps, call.pending_key_out + row);
    else
      copy(call.key + row, call.pending_key_out + row, call.dim);
  }
}

}  // namespace lineahead
