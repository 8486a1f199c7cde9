// Integer bookkeeping of one sequence: what was folded, what folds now, which columns attention sees and where they lie.
//
// Columns are the sinks, then the ring's tokens by position, then the nodes of this call.
#pragma once

#include "layout.h"
#include "numbers.cuh"

namespace lineahead::cuda {

// First position not in S after `length` tokens: schema.folded.
__host__ __device__ inline int folded(const Settings& settings, int length) {
  if (settings.pattern == kGrouped) return length / settings.window * settings.window;
  if (settings.pattern == kSliding) return length < settings.window ? 0 : length - settings.window + 1;
  return length;
}

// Keys before it, sinks aside, are outside the group or window of a query at `position`.
__host__ __device__ inline int local_start(const Settings& settings, int position) {
  return settings.pattern == kNoPattern ? position + 1 : folded(settings, position);
}

__device__ inline int largest(int a, int b) { return a > b ? a : b; }
__device__ inline int least(int a, int b) { return a < b ? a : b; }

// Where a row lies: in the window, among the pending rows, or among the nodes.
enum class Home { kWindow, kPending, kNode };
struct Source {
  Home home;
  int row;

  __device__ int packed() const { return (int)home << 28 | row; }
  __device__ static Source unpack(int bits) { return {static_cast<Home>(bits >> 28), bits & 0xfffffff}; }
};

enum class Sight { kNone, kLocal, kFar };

struct Plan {
  int ring;           // ring rows
  int before, total;  // tokens committed before and after this call's commit
  int fold, fold_end; // positions that fold now
  int attended;       // first ring position that attention reads
  int sinks, first, nodes;  // columns: sinks, then positions [first, total), then nodes
  const void* accept;       // this sequence's row of accept_index
  int index_bytes, accepted, pending;

  __device__ int columns() const { return sinks + total - first + nodes; }
  __device__ int first_node() const { return sinks + total - first; }

  __device__ Source committed(int position, int window_row) const {
    if (position < before) return {Home::kWindow, window_row};
    const int i = position - before;
    const long long row = index_bytes == 8 ? static_cast<const long long*>(accept)[i] : static_cast<const int*>(accept)[i];
    return {Home::kPending, (int)(row < 0 ? 0 : row >= pending ? pending - 1 : row)};
  }
  __device__ Source in_ring(int position) const { return committed(position, position % ring); }
  __device__ Source column(int c) const {
    if (c < sinks) return committed(c, ring + c);
    if (c < first_node()) return in_ring(first + c - sinks);
    return {Home::kNode, c - first_node()};
  }
};

__device__ inline int read_index(const void* from, int bytes, int i) {
  return bytes == 8 ? (int)static_cast<const long long*>(from)[i] : static_cast<const int*>(from)[i];
}

// `length` and `count` as the call's ports of these names have them for sequence b.
__device__ inline Plan make_plan(const Call& call, int ring, int b, int length, int count) {
  const Settings& settings = call.settings;
  Plan plan;
  plan.ring = ring;
  plan.before = largest(length, 0);
  plan.total = plan.before + (call.pending ? largest(least(count, call.accepted), 0) : 0);
  plan.fold = largest(folded(settings, plan.before), settings.sinks);
  plan.fold_end = settings.map == kNoMap ? plan.fold : folded(settings, plan.total);
  plan.attended = largest(folded(settings, plan.total), settings.sinks);
  const int reach = least(folded(settings, plan.total), plan.total - largest(settings.taps - 1, 0));
  plan.first = largest(reach, 0);
  plan.sinks = least(settings.sinks, plan.total);
  plan.nodes = call.nodes;
  plan.accept = static_cast<const char*>(call.accept_index) + (size_t)b * call.accepted * call.index_bytes;
  plan.index_bytes = call.index_bytes, plan.accepted = call.accepted, plan.pending = call.pending;
  return plan;
}

__device__ inline Plan make_plan(const Call& call, int ring, int b) {
  return make_plan(call, ring, b, read_index(call.length, call.index_bytes, b), read_index(call.accept_count, call.index_bytes, b));
}

// The block's tables in shared memory.
struct Tables {
  int *position, *source;  // of every column
  int* far;                // columns that some node may see outside its group or window
  int* node;               // position of every node
  unsigned* ancestors;     // [nodes, words]
  int* flags;              // [0] far columns, [1] and [2] what `arrive` found
  int words;

  __device__ bool is_ancestor(int t, int j) const { return ancestors[t * words + j / 32] >> (j % 32) & 1; }
};

// What node t sees of column c.
__device__ inline Sight sight(const Settings& settings, const Plan& plan, const Tables& tables, int t, int c) {
  if (c < plan.sinks) return Sight::kLocal;
  const int position = tables.position[c], node = c - plan.first_node();
  if (node >= 0) {
    if (!tables.is_ancestor(t, node)) return Sight::kNone;
    if (position < settings.sinks) return Sight::kLocal;
  } else if (position < plan.attended) {
    return Sight::kNone;
  }
  if (position >= local_start(settings, tables.node[t])) return Sight::kLocal;
  return settings.map == kNoMap ? Sight::kNone : Sight::kFar;
}

// Tap of the convolution by which node t weighs column c, or -1.
__device__ inline int tap(const Settings& settings, const Plan& plan, const Tables& tables, int t, int c) {
  if (c < plan.sinks) return -1;
  const int node = c - plan.first_node(), lag = tables.node[t] - tables.position[c];
  return lag >= 0 && lag < settings.taps && (node < 0 || tables.is_ancestor(t, node)) ? lag : -1;
}

__device__ inline bool read_ancestor(const Call& call, int b, int t, int j) {
  if (call.chain || call.nodes == 1) return j <= t;
  const size_t i = ((size_t)b * call.nodes + t) * call.nodes + j;
  return call.ancestor_bytes == 4 ? static_cast<const int*>(call.ancestors)[i] != 0 : static_cast<const char*>(call.ancestors)[i] != 0;
}

// Which nodes are above which, and their positions; all threads of the block, which must synchronise afterwards.
__device__ inline void fill_nodes(const Call& call, const Plan& plan, int b, Tables& tables) {
  const int lane = lane_index(), nodes = call.nodes;
  for (int t = warp_index(); t < nodes; t += kWarps) {
    int depth = -1;
    for (int word = 0; word < tables.words; ++word) {
      const int j = word * 32 + lane;
      const unsigned bits = ballot(j < nodes && read_ancestor(call, b, t, j));
      if (lane == 0) tables.ancestors[t * tables.words + word] = bits;
      depth += bit_count(bits);
    }
    if (lane == 0) tables.node[t] = plan.total + depth;
  }
}

// Fill the tables; all threads of the block, which must synchronise afterwards.
__device__ inline void fill_tables(const Call& call, const Plan& plan, int b, Tables& tables) {
  const int warp = warp_index(), lane = lane_index(), nodes = call.nodes;
  fill_nodes(call, plan, b, tables);
  sync_block();
  const int first_node = plan.first_node();
  for (int c = thread_index(); c < plan.columns(); c += kThreads) {
    tables.position[c] = c < plan.sinks ? c : c < first_node ? plan.first + c - plan.sinks : tables.node[c - first_node];
    tables.source[c] = plan.column(c).packed();
  }
  sync_block();
  if (warp != 0 || call.settings.map == kNoMap) return;
  int end = 0, count = 0;
  for (int t = 0; t < nodes; ++t) end = largest(end, local_start(call.settings, tables.node[t]));
  for (int base = plan.sinks; base < plan.columns(); base += kLanes) {
    const int c = base + lane;
    bool set = false;
    if (c < plan.columns()) {
      const int position = tables.position[c], from = c < first_node ? plan.attended : call.settings.sinks;
      set = position >= from && position < end;
    }
    const unsigned bits = ballot(set);
    if (set) tables.far[count + bit_count(bits & ((1u << lane) - 1))] = c;
    count += bit_count(bits);
  }
  if (lane == 0) tables.flags[0] = count;
}

}  // namespace lineahead::cuda
