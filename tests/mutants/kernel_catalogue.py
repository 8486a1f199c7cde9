"""Defects that the CUDA kernels could have, each as one edit of a source in csrc/cuda."""

# A table: each row quotes one line of source and its damaged form.
# ruff: noqa: E501

STEP, STREAM, PREFILL = 1, 2, 3  # which kernel an edit damages; Variant of csrc/cuda/call.h

# name, kernel, file, old, new
KERNEL_MUTANTS = (
    ("state kept in bf16", STEP, "commit.cuh", "store4(state, s0),", "store4(state, rounded<__nv_bfloat16>(s0)),"),
    ("state kept in bf16", STREAM, "stream_step.cuh", "store4(to + (size_t)f * call.value_dim, held.s[u][i]);", "store4(to + (size_t)f * call.value_dim, rounded<__nv_bfloat16>(held.s[u][i]));"),
    ("rejected rows are committed", STEP, "plan.cuh", "largest(least(count, call.accepted), 0)", "call.accepted"),
    ("rejected rows are committed", STREAM, "plan.cuh", "largest(least(count, call.accepted), 0)", "call.accepted"),
    ("the row after the accepted one", STEP, "plan.cuh", "row >= pending ? pending - 1 : row)", "row + 1 >= pending ? pending - 1 : row + 1)"),
    ("the row after the accepted one", STREAM, "stream.cuh", "read_index(index, call.index_bytes, r), c", "read_index(index, call.index_bytes, r) + 1, c"),
    ("earlier groups of the tree forgotten", STEP, "attend.cuh", "if (here && lane == 0 && sight(call.settings, block.plan, block.tables, tile.node(i), c) == Sight::kFar)\n        weight[call.features + c] = sum;", "weight[call.features + c] = 0;"),
    ("earlier groups of the tree forgotten", STREAM, "stream_attend.cuh", "is_far & bit ? gain.far * weight[c] : 0", "0"),
    ("one group for all nodes", STEP, "plan.cuh", "if (position >= local_start(settings, tables.node[t])) return Sight::kLocal;", "if (node >= 0 || position >= local_start(settings, tables.node[t])) return Sight::kLocal;"),
    ("one group for all nodes", STREAM, "stream.cuh", "if (position >= start) return Sight::kLocal;", "if (node >= 0 || position >= start) return Sight::kLocal;"),
    ("convolution over every row above", STEP, "plan.cuh", "lag >= 0 && lag < settings.taps && (node < 0 || tables.is_ancestor(t, node)) ? lag : -1", "lag >= 0 && lag < settings.taps ? lag : -1"),
    ("convolution over every row above", STREAM, "stream.cuh", "return node < 0 || s.tables.is_ancestor(t, node) ? lag : -1;", "return lag;"),
    ("position of a node is its row", STEP, "plan.cuh", "tables.node[t] = plan.total + depth;", "tables.node[t] = plan.total + t;"),
    ("position of a node is its row", STREAM, "plan.cuh", "tables.node[t] = plan.total + depth;", "tables.node[t] = plan.total + t;"),
    ("a window one wider", STEP, "plan.cuh", "length < settings.window ? 0 : length - settings.window + 1;", "length <= settings.window ? 0 : length - settings.window;"),
    ("a window one wider", STREAM, "plan.cuh", "length < settings.window ? 0 : length - settings.window + 1;", "length <= settings.window ? 0 : length - settings.window;"),
    ("norm not folded", STEP, "commit.cuh", "sum += phi[(size_t)n * features + f];", "sum += 0;"),
    ("norm not folded", STREAM, "stream_step.cuh", "sum += s.phi(n)[f];", "sum += 0;"),
    ("sinks fold", STEP, "plan.cuh", "plan.fold = largest(folded(settings, plan.before), settings.sinks);", "plan.fold = folded(settings, plan.before);"),
    ("sinks fold", STREAM, "plan.cuh", "plan.fold = largest(folded(settings, plan.before), settings.sinks);", "plan.fold = folded(settings, plan.before);"),
    ("a window row of another slot", STREAM, "stream_step.cuh", "row = k < fresh ? position % plan.ring :", "row = k < fresh ? (position + 1) % plan.ring :"),
    ("written before all have read", STEP, "commit.cuh", "row_blocks == 1 || last_to_arrive(by_slice + block.slice, row_blocks)", "true"),
    ("written before all have read", STREAM, "stream_step.cuh", "last_to_arrive(tickets + grid_size().x, blocks)", "true"),
    ("features before all products are there", STREAM, "stream_map.cuh", "if (has_projection(s.call.settings.map)) sync_block();", ""),
    ("weights used before they are final", STREAM, "stream_step.cuh", "if (pass == 0) sync_block();", ""),
    ("rows read before they are there", STREAM, "stream_step.cuh", "wait_copies();\n  sync_block();\n  const int row_blocks", "wait_copies();\n  const int row_blocks"),
    ("rejected rows are committed", PREFILL, "plan.cuh", "largest(least(count, call.accepted), 0)", "call.accepted"),
    ("a 16-bit part of S missing", PREFILL, "prefill_commit.cuh", "kParts = Shape::kHedge ? kExactParts<T> : 1,", "kParts = 1,"),
    ("norm of zero rows", PREFILL, "prefill_commit.cuh", "sums, plan.fold_end - position);", "sums, kChunk);"),
    ("rows of the chunk before", PREFILL, "prefill_commit.cuh", "find(turn + 2);", "find(turn + 1);"),
    ("a commit reads keys before they are there", PREFILL, "prefill_commit.cuh", "wait_copies();\n    sync_block();\n    const T *key", "wait_copies();\n    const T *key"),
    ("features of what S has", PREFILL, "prefill_map.cuh", "if (is_key && position + r < plan.attended)", "if (false)"),
    ("a quarter of a softmax", PREFILL, "prefill_map.cuh", "up = fmaf(all[i].z, __expf(all[i].x - top), up),", "up = all[i].z,"),
    ("a window one wider", PREFILL, "prefill_attend.cuh", "column(n, e) <= row(u)) weight[n][e] = -INFINITY;", "column(n, e) < row(u)) weight[n][e] = -INFINITY;"),
    ("a sink twice, in its chunk", PREFILL, "prefill_attend.cuh", "if (n < 8 && c < settings.sinks && c + j < settings.sinks) weight[n][e] = -INFINITY;", ""),
    ("a sink twice, in the next chunk", PREFILL, "prefill_attend.cuh", "if (attended > 0 && column", "if (turn == 0 && column"),
    ("sinks fold", PREFILL, "plan.cuh", "plan.attended = largest(folded(settings, plan.total), settings.sinks);", "plan.attended = folded(settings, plan.total);"),
    ("S of the first chunk", PREFILL, "prefill_attend.cuh", "if (more) unscale = publish(slice) * Shape::kUnscale;", ""),
    ("the filter one late", PREFILL, "prefill_attend.cuh", "weight[n][e] += conv[lag];", "weight[n][e] += lag ? conv[lag - 1] : 0;"),
    ("a chunk overwritten while it is read", PREFILL, "prefill_attend.cuh", "sync_block();\n      if (more) stage(", "if (more) stage("),
    ("parts of a sum before all are there", PREFILL, "prefill_attend.cuh", "sync_block();\n      if (more) unscale", "if (more) unscale"),
    ("raw keys left pending", PREFILL, "prefill_attend.cuh", "unit(key(turn), largest(plan.total - c, 0), kChunk);", "unit(key(turn), largest(plan.total - c, 0), 0);"),
)  # fmt: skip
