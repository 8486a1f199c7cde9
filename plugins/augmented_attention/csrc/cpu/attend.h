// Attention of one block of nodes, for all query heads of one key/value head.
#pragma once

#include "commit.h"

namespace lineahead {

// Keys and values of a block's columns, in up to three runs of rows. Where there are many queries the last run's keys come
// transposed.
struct Columns {
  struct Run {
    const float *key, *value;  // key is null in a run that is transposed
    int count;
  } run[3];
  int runs;
  const float* transposed;      // [D, ld]
  const float* far_transposed;  // [F, ld] from the first column after the sinks on, or null: take far_rows
  int ld;
  const float* far_rows;        // [far_count, F]
  const float *state, *norm;
};

// Rows of the block, head-major: [group * nodes]. Queries, their features times alpha, and the weight of every column.
struct Rows {
  float *query, *phi, *weight, *far;
  int count, far_ld;
};

inline void prepare_queries(const Call& call, int b, int g, const Block& block, const Rows& rows) {
  const Settings& settings = call.settings;
  for (int r = 0; r < call.group(); ++r) {
    const int head = g * call.group() + r;
    float* query = rows.query + (size_t)r * block.nodes * call.dim;
    const float* from = call.query + (((size_t)b * call.heads + head) * call.nodes + block.node) * call.dim;
    if (settings.qk_norm)
      for (int t = 0; t < block.nodes; ++t)
        unit_row(from + (size_t)t * call.dim, call.dim, settings.eps, query + (size_t)t * call.dim);
    else
      copy(from, query, (size_t)block.nodes * call.dim);
    if (!settings.has_state()) continue;
    const size_t size = (size_t)block.nodes * call.features;
    float* phi = rows.phi + r * size;
    settings.map->apply(query, block.nodes, call.dim, call.dim, call.query_map + (size_t)head * call.dim * call.columns,
                        call.columns, phi);
    const float alpha = call.alpha[head * call.alpha_step];
    for (size_t i = 0; i < size; ++i) phi[i] *= alpha;
  }
}

inline void score(const Call& call, const Block& block, const Columns& columns, const Rows& rows) {
  int done = 0;
  for (int i = 0; i < columns.runs && call.settings.local != Local::kNone; done += columns.run[i++].count) {
    const Columns::Run& run = columns.run[i];
    if (run.key)
      dot_rows(rows.count, run.count, call.dim, rows.query, call.dim, run.key, call.dim, rows.weight + done, block.ld);
    else
      multiply(rows.count, padded(run.count), call.dim, Strided{rows.query, call.dim, 1}, columns.transposed, columns.ld,
               nullptr, rows.weight + done, block.ld);
  }
  if (!block.far_count) return;
  if (columns.far_transposed)
    multiply(rows.count, rows.far_ld, call.features, Strided{rows.phi, call.features, 1},
             columns.far_transposed + block.far_column[0] - columns.run[0].count, columns.ld, nullptr, rows.far, rows.far_ld);
  else
    dot_rows(rows.count, block.far_count, call.features, rows.phi, call.features, columns.far_rows, call.features, rows.far,
             rows.far_ld);
}

// Scores of one row become the local kernel's weights where `near`, zero elsewhere; returns their sum.
inline float local_weights(const Settings& settings, float* weight, const int32_t* near, int count, float local_scale) {
  const float scale = settings.scale;
  Vec total{};
  if (settings.local == Local::kNone) {
    std::fill(weight, weight + count, 0.0f);
  } else if (settings.local == Local::kRelu2) {
    for (int c = 0; c < count; c += kWidth) {
      const Vec x = maximum(load(weight + c) * scale, Vec{});
      const Vec w = select(load(near + c), x * x * local_scale, Vec{});
      store(weight + c, w);
      total += w;
    }
  } else {
    const float lowest = -3.4028235e38f;
    Vec best = splat(lowest);
    for (int c = 0; c < count; c += kWidth)
      best = maximum(best, select(load(near + c), load(weight + c) * scale, splat(lowest)));
    const float peak = highest(best);
    for (int c = 0; c < count; c += kWidth) {
      const Mask here = load(near + c);
      const Vec x = select(here, load(weight + c) * scale - peak, splat(lowest));
      const Vec w = select(here, exponential(x) * local_scale, Vec{});
      store(weight + c, w);
      total += w;
    }
  }
  return sum(total);
}

// The final weight of every column in every row, and phi scaled so that phi S is the global term.
inline void weigh(const Call& call, int g, const Block& block, const Columns& columns, const Rows& rows) {
  const Settings& settings = call.settings;
  for (int i = 0; i < rows.count; ++i) {
    const int head = g * call.group() + i / block.nodes, t = i % block.nodes;
    float* weight = rows.weight + (size_t)i * block.ld;
    const float local_scale = call.local_scale[head * call.local_scale_step];
    float total =
        local_weights(settings, weight, block.near + (size_t)t * block.ld, padded(block.width), local_scale);
    const int32_t* far = block.far + (size_t)t * block.far_count;
    for (int r = 0; r < block.far_count; ++r) {
      const float w = far[r] ? rows.far[(size_t)i * rows.far_ld + r] : 0.0f;
      weight[block.far_column[r]] += w;
      total += w;
    }
    if (settings.denominator) {
      float* phi = rows.phi + (size_t)i * call.features;
      if (settings.has_state()) total += dot(phi, columns.norm, call.features);
      const float inverse = 1.0f / (total + settings.eps);
      for (int c = 0; c < block.width; ++c) weight[c] *= inverse;
      if (settings.has_state())
        for (int f = 0; f < call.features; ++f) phi[f] *= inverse;
    }
    const float* filter = call.conv + (size_t)head * settings.taps;
    for (int k = block.tap_start[t]; k < block.tap_start[t + 1]; ++k)
      weight[block.taps[k].column] += filter[block.taps[k].lag];
  }
}

inline void combine(const Call& call, int b, int g, const Block& block, const Columns& columns, const Rows& rows) {
  const bool whole = block.nodes == call.nodes;  // then the heads' output rows are adjacent
  const int parts = whole ? 1 : call.group(), count = whole ? rows.count : block.nodes, width = call.value_dim;
  for (int r = 0; r < parts; ++r) {
    const size_t row = (size_t)r * block.nodes;
    const size_t head = (size_t)b * call.heads + g * call.group() + r;
    float* output = call.output + (head * call.nodes + block.node) * width;
    const float* from = nullptr;
    if (call.settings.has_state()) {
      multiply(count, width, call.features, Strided{rows.phi + row * call.features, call.features, 1}, columns.state, width,
               nullptr, output, width);
      from = output;
    }
    int done = 0;
    for (int i = 0; i < columns.runs; done += columns.run[i++].count) {
      multiply(count, width, columns.run[i].count, Strided{rows.weight + row * block.ld + done, block.ld, 1},
               columns.run[i].value, width, from, output, width);
      from = output;
    }
  }
}

inline void attend(const Call& call, int b, int g, const Block& block, const Columns& columns) {
  Frame frame;
  Rows rows{};
  rows.count = call.group() * block.nodes;
  rows.far_ld = padded(block.far_count);
  rows.query = frame.take<float>((size_t)rows.count * call.dim);
  rows.phi = frame.take<float>((size_t)rows.count * call.features);
  rows.weight = frame.take<float>((size_t)rows.count * block.ld);
  rows.far = frame.take<float>((size_t)rows.count * rows.far_ld);
  prepare_queries(call, b, g, block, rows);
  score(call, block, columns, rows);
  weigh(call, g, block, columns, rows);
  combine(call, b, g, block, columns, rows);
}

}  // namespace lineahead
