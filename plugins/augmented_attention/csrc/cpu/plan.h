// Integer bookkeeping of one batch row: which positions its columns hold, what each node sees, how the nodes split into blocks.
#pragma once

#include <numeric>

#include "call.h"

namespace lineahead {

// One pair of the causal convolution: `lag` tokens back along the path lies in `column`.
struct Tap {
  int column, lag;
};

// Nodes [node, node + nodes) and what they look at: the plan's sinks, then its columns [column, column + columns). Indices of
// columns below count from the block's first sink.
struct Block {
  int node, nodes, column, columns;
  int width;            // sinks + columns
  int ld;               // row length of `near`: whole registers, and one to spare
  int64_t first;        // positions before it, sinks aside, are in the block's state
  int32_t* near;        // [nodes, ld], -1 where the column is visible and local
  int* far_column;      // [far_count], columns that some node sees outside its group or window
  int32_t* far;         // [nodes, far_count], -1 where it does
  int far_count;
  Tap* taps;            // [tap_start[nodes]]
  int* tap_start;       // [nodes + 1]
};

// Columns are the tokens in the ring, then the nodes of this call. The ring comes in row order, or, if `ordered`, by position.
// Sinks stand apart: column i of them is position i. In an ordered chain they include nodes, which then count only there.
struct Plan {
  int64_t before, total;  // tokens committed before and after this call's commit
  int committed;          // columns from the ring
  int columns, sinks;
  bool ordered, chain;
  int64_t* position;      // [columns]
  Block* blocks;
  int block_count;

  bool sliced() const { return ordered && chain; }
  int row(int column, int rows) const { return ordered ? (int)(position[column] % rows) : column; }
  int column_of(int64_t where) const { return (int)(where - (total - committed)); }  // of an ordered chain
};

inline int64_t ring_position(int64_t total, int row, int rows) {
  const int64_t last = total - 1;
  return last - (((last - row) % rows) + rows) % rows;
}

// Positions of all columns; notes whether the tree is a chain.
inline void place_columns(const Call& call, int b, Plan& plan, Frame& frame) {
  plan.committed = (int)std::min<int64_t>(plan.total, call.rows);
  plan.columns = plan.committed + call.nodes;
  plan.position = frame.take<int64_t>(plan.columns);
  for (int c = 0; c < plan.committed; ++c)
    plan.position[c] = plan.ordered ? plan.total - plan.committed + c : ring_position(plan.total, c, call.rows);
  plan.chain = true;
  const bool* tree = call.ancestors + (size_t)b * call.nodes * call.nodes;
  for (int i = 0; i < call.nodes; ++i) {
    const bool* row = tree + (size_t)i * call.nodes;
    int count = 0, prefix = 0;
    for (int j = 0; j < call.nodes; ++j) count += row[j];
    for (int j = 0; j <= i; ++j) prefix += row[j];
    plan.chain &= count == i + 1 && prefix == i + 1;
    plan.position[plan.committed + i] = plan.total + count - 1;
  }
}

// What one node sees. Fills its rows of near and far, and its taps; returns the number of taps.
inline int see(const Call& call, const Plan& plan, const Block& block, int t, const bool* tree, Tap* taps) {
  const Settings& settings = call.settings;
  const int64_t own = plan.position[plan.committed + block.node + t], start = settings.local_start(own);
  const bool* row = tree + (size_t)(block.node + t) * call.nodes;
  const int64_t* position = plan.position + block.column;
  const int held = std::max(plan.committed - block.column, 0);
  const bool* node = row + block.column - plan.committed;  // node[c] for c >= held
  const int64_t least = std::max<int64_t>(block.first, settings.sinks), local = std::max(start, least);
  const int64_t sinks = plan.sliced() ? 0 : settings.sinks;  // nodes before it are local to all
  int32_t* near = block.near + (size_t)t * block.ld;
  for (int c = 0; c < plan.sinks; ++c) near[c] = -(int32_t)(c <= own);
  near += plan.sinks;
  for (int c = 0; c < held; ++c) near[c] = -(int32_t)(position[c] >= local);
  for (int c = held; c < block.columns; ++c)
    near[c] = -(int32_t)(node[c] && (position[c] >= local || position[c] < sinks));
  std::fill(near + block.columns, near + block.ld - plan.sinks, 0);
  for (int r = 0; r < block.far_count; ++r) {
    const int c = block.far_column[r] - plan.sinks;
    block.far[(size_t)t * block.far_count + r] =
        -(int32_t)((c < held || node[c]) && position[c] >= least && position[c] < start);
  }
  int count = 0;
  if (settings.taps)
    for (int c = 0; c < block.columns; ++c) {
      const int64_t lag = own - position[c];
      if (lag >= 0 && lag < settings.taps && (c < held || node[c])) taps[count++] = {c + plan.sinks, (int)lag};
    }
  return count;
}

inline void fill_block(const Call& call, int b, const Plan& plan, Block& block, Frame& frame) {
  const bool* tree = call.ancestors + (size_t)b * call.nodes * call.nodes;
  const int64_t* position = plan.position + block.column;
  block.width = plan.sinks + block.columns;
  block.ld = padded(block.width) + kWidth;
  block.near = frame.take<int32_t>((size_t)block.nodes * block.ld);
  block.far_column = frame.take<int>(block.columns);
  block.far_count = 0;
  if (call.settings.has_state()) {
    const int64_t* own = plan.position + plan.committed + block.node;
    const int64_t end = call.settings.local_start(*std::max_element(own, own + block.nodes));
    const int64_t least = std::max<int64_t>(block.first, call.settings.sinks);
    for (int c = 0; c < block.columns; ++c)
      if (position[c] >= least && position[c] < end) block.far_column[block.far_count++] = c + plan.sinks;
    if (plan.ordered && block.far_count) {  // prepared features are read as one run of columns
      const int low = block.far_column[0];
      block.far_count = block.far_column[block.far_count - 1] + 1 - low;
      std::iota(block.far_column, block.far_column + block.far_count, low);
    }
  }
  block.far = frame.take<int32_t>((size_t)block.nodes * block.far_count);
  block.taps = frame.take<Tap>((size_t)block.nodes * std::min(block.columns, call.settings.taps));
  block.tap_start = frame.take<int>(block.nodes + 1);
  block.tap_start[0] = 0;
  for (int t = 0; t < block.nodes; ++t)
    block.tap_start[t + 1] =
        block.tap_start[t] + see(call, plan, block, t, tree, block.taps + block.tap_start[t]);
}

// The plan of batch row b, in blocks of at most `block_nodes` nodes. In a chain each block sees only the columns that it needs,
// as if the nodes before it had been committed; a tree's blocks see all columns.
inline Plan make_plan(const Call& call, int b, int block_nodes, bool ordered, Frame& frame) {
  Plan plan{};
  plan.before = call.length[b];
  plan.total = plan.before + call.accept_count[b];
  plan.ordered = ordered;
  place_columns(call, b, plan, frame);
  plan.sinks = (int)std::min<int64_t>(plan.total + (plan.sliced() ? call.nodes : 0), call.settings.sinks);
  plan.block_count = (call.nodes + block_nodes - 1) / block_nodes;
  plan.blocks = frame.take<Block>(plan.block_count);
  const Settings& settings = call.settings;
  for (int i = 0; i < plan.block_count; ++i) {
    Block& block = plan.blocks[i];
    block = Block{};
    block.node = i * block_nodes;
    block.nodes = std::min(block_nodes, call.nodes - block.node);
    const bool sliced = plan.sliced();
    const int64_t start = sliced ? plan.total + block.node : plan.total;
    block.first = settings.folded(start);
    if (sliced) {
      const int64_t reach = std::min(block.first, start - std::max(settings.taps - 1, 0));
      block.column = std::max(plan.column_of(reach), 0);
    }
    block.columns = (sliced ? plan.committed + block.node + block.nodes : plan.columns) - block.column;
    fill_block(call, b, plan, block, frame);
  }
  return plan;
}

}  // namespace lineahead
