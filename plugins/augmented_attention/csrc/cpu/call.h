// One call of the operator: its settings, sizes and operands, and the scratch memory that its parts share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "feature_map.h"

namespace lineahead {

enum class Local { kNone, kRelu2, kSoftmax };
enum class Pattern { kNone, kGrouped, kSliding };

// schema.AttentionSettings and the node's `scale`.
struct Settings {
  Local local;
  Pattern pattern;
  int64_t window;
  const FeatureMap* map;  // null: no global term
  bool denominator;
  bool qk_norm;
  int taps;
  int sinks;
  float eps;
  float scale;

  bool has_state() const { return map != nullptr; }
  bool has_norm() const { return map != nullptr && denominator; }

  int64_t ring_rows() const {
    return std::max<int64_t>({pattern == Pattern::kNone ? 0 : window, int64_t{taps} - 1, 1});
  }

  // First position that is not in S after `length` tokens: schema.folded.
  int64_t folded(int64_t length) const {
    if (pattern == Pattern::kGrouped) return length / window * window;
    if (pattern == Pattern::kSliding) return std::max<int64_t>(length - window + 1, 0);
    return length;
  }

  // Keys before this position, sinks aside, are outside the group or window of a query at `position`.
  int64_t local_start(int64_t position) const {
    return pattern == Pattern::kNone ? position + 1 : folded(position);
  }
};

// Operands by the names and layouts of step.step; one-element ports that the settings leave unused are not read.
struct Call {
  Settings settings;
  int batch, heads, shared, nodes, dim, value_dim;  // B, H, Hkv, T, D, Dv
  int features, columns, rows, window_rows, pending, accepted;  // F, M, ring rows, ring and sink rows, P, A
  const float *query, *key, *value;
  const bool* ancestors;
  const int64_t *length, *accept_index, *accept_count;
  const float *state, *norm, *window_key, *window_value, *pending_key, *pending_value;
  const float *alpha, *local_scale, *conv, *query_map, *key_map;
  int alpha_step, local_scale_step;  // 0 when one number serves all heads
  float *output, *state_out, *norm_out, *window_key_out, *window_value_out, *pending_key_out;

  int group() const { return heads / shared; }
  size_t state_size() const { return (size_t)features * value_dim; }
};

// Memory of one thread, kept between calls; what was taken is given back when a Frame ends.
class Scratch {
 public:
  static Scratch& of_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

  template <typename T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size) ++block_, used_ = 0;
    if (block_ == blocks_.size()) add(std::max<size_t>(bytes, 1 << 18));
    char* start = blocks_[block_].start() + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(start);
  }

 private:
  friend class Frame;
  static constexpr size_t kAlign = 64;

  struct Block {
    std::unique_ptr<char[]> memory;
    size_t size;
    char* start() const {
      const size_t address = reinterpret_cast<size_t>(memory.get());
      return memory.get() + (kAlign - address % kAlign) % kAlign;
    }
  };

  void add(size_t bytes) {
    blocks_.push_back({std::unique_ptr<char[]>(new char[bytes + kAlign]), bytes});
    used_ = 0;
  }

  // After a call that needed several blocks, keep one of their total size.
  void merge() {
    if (blocks_.size() < 2) return;
    size_t total = 0;
    for (const Block& block : blocks_) total += block.size;
    blocks_.clear();
    add(total);
  }

  std::vector<Block> blocks_;
  size_t block_ = 0, used_ = 0;
};

class Frame {
 public:
  Frame() : scratch_(Scratch::of_thread()), block_(scratch_.block_), used_(scratch_.used_) {}
  Frame(const Frame&) = delete;
  ~Frame() {
    scratch_.block_ = block_, scratch_.used_ = used_;
    if (block_ == 0 && used_ == 0) scratch_.merge();
  }

  template <typename T>
  T* take(size_t count) {
    return scratch_.take<T>(count);
  }

 private:
  Scratch& scratch_;
  size_t block_, used_;
};

// L2-normalise one row.
inline void unit_row(const float* from, int n, float eps, float* to) {
  const float inverse = 1.0f / std::sqrt(dot(from, from, n) + eps);
  for (int i = 0; i < n; ++i) to[i] = from[i] * inverse;
}

}  // namespace lineahead
