// The whole call: few queries attend straight from the ring; many are split into blocks over keys prepared once.
#pragma once

#include "attend.h"

namespace lineahead {

// Measured with 9 query heads of 64 on 3 key/value heads: preparing keys pays from about 36 query rows on, and blocks of 24
// to 48 rows are within 5 % of each other.
constexpr int kDirectRows = 32;  // at most this many query rows per key/value head take the direct way
constexpr int kBlockRows = 48;   // query rows per block otherwise

// Features of the block's far columns, one row each, gathered from the runs.
inline const float* far_features(const Call& call, int g, const Block& block, const Columns& columns, Frame& frame) {
  if (!block.far_count) return nullptr;
  float* key = frame.take<float>((size_t)block.far_count * call.dim);
  float* phi = frame.take<float>((size_t)block.far_count * call.features);
  for (int r = 0; r < block.far_count; ++r) {
    const Columns::Run* run = columns.run;
    int c = block.far_column[r];
    for (; c >= run->count; ++run) c -= run->count;
    copy(run->key + (size_t)c * call.dim, key + (size_t)r * call.dim, call.dim);
  }
  call.settings.map->apply(key, block.far_count, call.dim, call.dim,
                           call.key_map + (size_t)g * call.dim * call.columns, call.columns, phi);
  return phi;
}

// The sinks, the ring and the nodes where they lie.
inline Columns columns_in_place(const Call& call, int b, int g, const Plan& plan) {
  const size_t nodes = ((size_t)b * call.shared + g) * call.nodes;
  const Held held(call, b, g);
  Columns columns{};
  columns.runs = 3;
  columns.run[0] = {held.key_out + (size_t)call.rows * call.dim, held.value_out + (size_t)call.rows * call.value_dim,
                    plan.sinks};
  columns.run[1] = {held.key_out, held.value_out, plan.committed};
  columns.run[2] = {call.pending_key_out + nodes * call.dim, call.value + nodes * call.value_dim, call.nodes};
  columns.state = held.state_out, columns.norm = held.norm_out;
  return columns;
}

inline void direct(const Call& call, int b, int g, const Plan& plan) {
  commit(call, b, g, plan);
  Frame frame;
  Columns columns = columns_in_place(call, b, g, plan);
  columns.far_rows = far_features(call, g, plan.blocks[0], columns, frame);
  attend(call, b, g, plan.blocks[0], columns);
}

// Keys (transposed), values and features of all columns by position, and the state before each block, of one key/value head.
struct Prepared {
  float *sink_key, *sink_value, *key_t, *value, *phi_t, *states, *norms;
  const float** state;  // [block_count]
  const float** norm;
  int ld;

  Prepared(const Call& call, const Plan& plan, Frame& frame) {
    ld = padded(plan.columns) + kWidth;
    sink_key = frame.take<float>((size_t)plan.sinks * call.dim);
    sink_value = frame.take<float>((size_t)plan.sinks * call.value_dim);
    key_t = frame.take<float>((size_t)call.dim * ld);
    value = frame.take<float>((size_t)plan.columns * call.value_dim);
    phi_t = frame.take<float>((size_t)call.features * ld);
    const int folds = plan.chain && call.settings.has_state() ? plan.block_count - 1 : 0;
    states = frame.take<float>(folds * call.state_size());
    norms = frame.take<float>((size_t)folds * call.features);
    state = frame.take<const float*>(plan.block_count);
    norm = frame.take<const float*>(plan.block_count);
  }
};

inline void transpose(const float* from, int rows, int columns, float* to, int ld) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) to[(size_t)j * ld + i] = from[(size_t)i * columns + j];
}

// In a chain, the state before block i holds all that left the group or window before the block's first node.
inline void fold_blocks(const Call& call, const Held& held, const Plan& plan, Prepared& ready) {
  const int features = call.features, width = call.value_dim;
  ready.state[0] = held.state_out, ready.norm[0] = held.norm_out;
  for (int i = 1; i < plan.block_count; ++i) {
    ready.state[i] = ready.state[i - 1], ready.norm[i] = ready.norm[i - 1];
    if (!plan.chain || !call.settings.has_state()) continue;
    const int64_t first = std::max<int64_t>(plan.blocks[i - 1].first, call.settings.sinks), last = plan.blocks[i].first;
    if (last <= first) continue;
    const int from = plan.column_of(first), to = plan.column_of(last);
    float* state = ready.states + (i - 1) * call.state_size();
    multiply(features, width, to - from, Strided{ready.phi_t + from, ready.ld, 1}, ready.value + (size_t)from * width, width,
             ready.state[i - 1], state, width);
    ready.state[i] = state;
    if (!call.settings.has_norm()) continue;
    float* norm = ready.norms + (size_t)(i - 1) * features;
    for (int f = 0; f < features; ++f) {
      float total = ready.norm[i - 1][f];
      for (int c = from; c < to; ++c) total += ready.phi_t[(size_t)f * ready.ld + c];
      norm[f] = total;
    }
    ready.norm[i] = norm;
  }
}

inline void prepare(const Call& call, int b, int g, const Plan& plan, Prepared& ready) {
  commit(call, b, g, plan);
  Frame frame;
  const Held held(call, b, g);
  const size_t nodes = ((size_t)b * call.shared + g) * call.nodes;
  float* key = frame.take<float>((size_t)plan.columns * call.dim);
  for (int c = 0; c < plan.committed; ++c) {
    const int row = plan.row(c, call.rows);
    copy(held.key_out + (size_t)row * call.dim, key + (size_t)c * call.dim, call.dim);
    copy(held.value_out + (size_t)row * call.value_dim, ready.value + (size_t)c * call.value_dim, call.value_dim);
  }
  copy(call.pending_key_out + nodes * call.dim, key + (size_t)plan.committed * call.dim, (size_t)call.nodes * call.dim);
  copy(call.value + nodes * call.value_dim, ready.value + (size_t)plan.committed * call.value_dim,
       (size_t)call.nodes * call.value_dim);
  for (int i = 0; i < plan.sinks; ++i) {  // a sink may still be a node
    const bool kept = i < plan.total;
    const size_t row = kept ? call.rows + i : nodes + (i - plan.total);
    copy((kept ? held.key_out : call.pending_key_out) + row * call.dim, ready.sink_key + (size_t)i * call.dim, call.dim);
    copy((kept ? held.value_out : call.value) + row * call.value_dim, ready.sink_value + (size_t)i * call.value_dim,
         call.value_dim);
  }
  for (int d = 0; d < call.dim; ++d)
    std::fill_n(ready.key_t + (size_t)d * ready.ld + plan.columns, ready.ld - plan.columns, 0.0f);
  transpose(key, plan.columns, call.dim, ready.key_t, ready.ld);
  int low = plan.columns, high = 0;  // columns whose features some block needs
  for (int i = 0; i < plan.block_count; ++i) {
    const Block& block = plan.blocks[i];
    if (!block.far_count) continue;
    low = std::min(low, block.column + block.far_column[0] - plan.sinks);
    high = std::max(high, block.column + block.far_column[block.far_count - 1] + 1 - plan.sinks);
  }
  if (plan.chain && call.settings.has_state()) {
    const int64_t first = std::max<int64_t>(plan.blocks[0].first, call.settings.sinks);
    const int64_t last = plan.blocks[plan.block_count - 1].first;
    if (last > first) low = std::min(low, plan.column_of(first)), high = std::max(high, plan.column_of(last));
  }
  if (call.settings.has_state()) std::fill_n(ready.phi_t, (size_t)call.features * ready.ld, 0.0f);
  if (high > low) {
    float* phi = frame.take<float>((size_t)(high - low) * call.features);
    call.settings.map->apply(key + (size_t)low * call.dim, high - low, call.dim, call.dim,
                             call.key_map + (size_t)g * call.dim * call.columns, call.columns, phi);
    transpose(phi, high - low, call.features, ready.phi_t + low, ready.ld);
  }
  fold_blocks(call, held, plan, ready);
}

inline void attend_prepared(const Call& call, int b, int g, const Plan& plan, int i, const Prepared& ready) {
  const Block& block = plan.blocks[i];
  Columns columns{};
  columns.runs = 2;
  columns.run[0] = {ready.sink_key, ready.sink_value, plan.sinks};
  columns.run[1] = {nullptr, ready.value + (size_t)block.column * call.value_dim, block.columns};
  columns.transposed = ready.key_t + block.column, columns.far_transposed = ready.phi_t + block.column;
  columns.ld = ready.ld;
  columns.state = ready.state[i], columns.norm = ready.norm[i];
  attend(call, b, g, block, columns);
}

// Runs job(0) .. job(count - 1), in parallel where `parallel(count, function, data)` can.
template <typename Parallel, typename Job>
void for_each(const Parallel& parallel, size_t count, Job job) {
  parallel(count, [](void* data, size_t i) { (*static_cast<Job*>(data))(i); }, &job);
}

template <typename Parallel>
void step(const Call& call, const Parallel& parallel) {
  Frame frame;
  const int shared = call.shared;
  const bool small = call.group() * call.nodes <= kDirectRows;
  const int block_nodes = small ? std::max(call.nodes, 1) : std::max(kBlockRows / call.group(), 16);
  Plan* plans = frame.take<Plan>(call.batch);
  for (int b = 0; b < call.batch; ++b) plans[b] = make_plan(call, b, block_nodes, !small, frame);
  const size_t heads = (size_t)call.batch * shared;
  if (small) {
    for_each(parallel, heads, [&](size_t i) { direct(call, (int)i / shared, (int)i % shared, plans[i / shared]); });
    return;
  }
  std::vector<Prepared> ready;
  for (size_t i = 0; i < heads; ++i) ready.emplace_back(call, plans[i / shared], frame);
  for_each(parallel, heads,
           [&](size_t i) { prepare(call, (int)i / shared, (int)i % shared, plans[i / shared], ready[i]); });
  const size_t blocks = plans[0].block_count;
  for_each(parallel, heads * blocks, [&](size_t job) {
    const size_t i = job / blocks;
    attend_prepared(call, (int)i / shared, (int)i % shared, plans[i / shared], (int)(job % blocks), ready[i]);
  });
}

}  // namespace lineahead
