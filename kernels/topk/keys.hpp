// A key is a score, turned so that smaller is better, in the upper 32 bits and the document's rank in the lower: a total order, so that
// it matters neither who finds a document nor when.
#pragma once

#include <cstdint>

#include "tile/simd.hpp"
#include "topk/args.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

typedef uint64_t Key;
constexpr Key kNoKey = ~Key{0};
constexpr uint32_t kNoOrder = ~uint32_t{0};  // of a score that is never found: NaN

SIMTILE_INLINE bool is_descending(TopkMetric metric) {
  return metric == TopkMetric::dot || metric == TopkMetric::cosine;
}

// Smaller is better. -0 equals 0. Never kNoOrder but for NaN.
SIMTILE_INLINE uint32_t order_of(float score, bool descending) {
  if (score != score) return kNoOrder;
  score += 0.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &score, 4);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return descending ? ~ascending : ascending;
}

SIMTILE_INLINE float score_of(uint32_t order, bool descending) {
  const uint32_t ascending = descending ? ~order : order;
  const uint32_t bits = ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending;
  float score;
  __builtin_memcpy(&score, &bits, 4);
  return score;
}

SIMTILE_INLINE void swap_keys(Key& a, Key& b) {
  const Key kept = a;
  a = b;
  b = kept;
}

// Sorts three places; the middle one is then a good pivot.
SIMTILE_INLINE void sort_three(Key* keys, int64_t a, int64_t b, int64_t c) {
  if (keys[b] < keys[a]) swap_keys(keys[a], keys[b]);
  if (keys[c] < keys[b]) swap_keys(keys[b], keys[c]);
  if (keys[b] < keys[a]) swap_keys(keys[a], keys[b]);
}

// Hoare's partition of keys[begin, end), at least 3: those before the result are <= those from it on, and neither part is empty.
SIMTILE_INLINE int64_t partition(Key* keys, int64_t begin, int64_t end) {
  const int64_t middle = begin + (end - begin) / 2;
  sort_three(keys, begin, middle, end - 1);
  const Key pivot = keys[middle];
  int64_t i = begin, j = end - 1;
  for (;;) {
    while (keys[i] < pivot) i++;
    while (keys[j] > pivot) j--;
    if (i >= j) return j + 1;
    swap_keys(keys[i++], keys[j--]);
  }
}

void sift_down(Key* keys, int64_t root, int64_t count) {
  for (;;) {
    int64_t child = 2 * root + 1;
    if (child >= count) return;
    if (child + 1 < count && keys[child] < keys[child + 1]) child++;
    if (keys[root] >= keys[child]) return;
    swap_keys(keys[root], keys[child]);
    root = child;
  }
}

void heap_sort(Key* keys, int64_t count) {
  for (int64_t root = count / 2 - 1; root >= 0; root--) sift_down(keys, root, count);
  for (int64_t end = count - 1; end > 0; end--) {
    swap_keys(keys[0], keys[end]);
    sift_down(keys, 0, end);
  }
}

// The k smallest of `count` keys into the first k places, in no order. 0 < k < count.
void keep_smallest(Key* keys, int64_t count, int64_t k) {
  int64_t begin = 0, end = count;
  for (int rounds = 4 * (64 - __builtin_clzll(static_cast<uint64_t>(count))); end - begin > 2; rounds--) {
    if (rounds == 0) return heap_sort(keys + begin, end - begin);  // the pivots are bad
    const int64_t split = partition(keys, begin, end);
    if (split == k) return;
    if (split > k)
      end = split;
    else
      begin = split;
  }
  if (end - begin == 2 && keys[begin + 1] < keys[begin]) swap_keys(keys[begin], keys[begin + 1]);
}

// The same; returns the largest of the k.
SIMTILE_INLINE Key keep_best(Key* keys, int64_t count, int64_t k) {
  keep_smallest(keys, count, k);
  Key worst = 0;
  for (int64_t i = 0; i < k; i++) worst = most<Key>(worst, keys[i]);
  return worst;
}

// Quicksort that turns to heap sort where its pivots are bad.
void sort_keys(Key* keys, int64_t count) {
  struct Part {
    int64_t begin, end;
    int depth;
  } parts[64];
  int waiting = 0;
  parts[waiting++] = {0, count, 2 * (64 - __builtin_clzll(static_cast<uint64_t>(count) | 1))};
  while (waiting > 0) {
    Part part = parts[--waiting];
    while (part.end - part.begin > 16 && part.depth-- > 0) {
      const int64_t split = partition(keys, part.begin, part.end);
      // The longer part waits, so that the waiting ones are few.
      const bool first_is_longer = split - part.begin > part.end - split;
      parts[waiting++] = first_is_longer ? Part{part.begin, split, part.depth} : Part{split, part.end, part.depth};
      if (first_is_longer)
        part.begin = split;
      else
        part.end = split;
    }
    if (part.end - part.begin > 16) {
      heap_sort(keys + part.begin, part.end - part.begin);
      continue;
    }
    for (int64_t i = part.begin + 1; i < part.end; i++) {
      const Key key = keys[i];
      int64_t j = i;
      for (; j > part.begin && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
      keys[j] = key;
    }
  }
}

// The best keys that one worker has seen for one query: at most `capacity`, of which the best k are what counts.
struct Reservoir {
  int64_t count;
  Key worst;        // at least k of its keys are not above: a larger key is not among the best k
  int64_t certain;  // so many keys, the first, are those of the definition; the others are estimates, see estimates.hpp
  float width;      // no score is better than its estimate by more
};

// How many keys a reservoir holds: twice k, so that making room costs a few comparisons a key; no more than there are documents.
SIMTILE_INLINE int64_t reservoir_capacity(int64_t k, int64_t documents) {
  return least<int64_t>(2 * k + 32, most<int64_t>(documents, 1));
}

// A key that at least k of `count` are not above, from a sample: above the k-th by about a standard deviation of what samples give. Costs
// one pass over the keys instead of a selection's several. kNoKey: not found.
SIMTILE_INLINE Key sampled_bar(const Key* keys, int64_t count, int64_t k) {
  constexpr int64_t kSample = 64, kMargin = 4;
  const int64_t at = kSample * k / count + kMargin;
  if (count <= 2 * kSample || at >= kSample) return kNoKey;
  Key sample[kSample];
  for (int64_t i = 0; i < kSample; i++) sample[i] = keys[i * count / kSample];
  sort_keys(sample, kSample);
  const Key bar = sample[at];
  int64_t within = 0;
  for (int64_t i = 0; i < count; i++) within += keys[i] <= bar;
  return within >= k && within < count ? bar : kNoKey;
}

// Makes room: at least k of the smallest keys stay, in the first places, and `worst` follows. 0 < k < count.
SIMTILE_INLINE void shrink(Reservoir& reservoir, Key* keys, int64_t k) {
  // With a bar from a sample, some keys stay that could have gone.
  const int64_t count = reservoir.count;
  const Key bar = sampled_bar(keys, count, k);
  if (bar != kNoKey) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
      const Key key = keys[i];
      keys[kept] = key;
      kept += key <= bar;
    }
    reservoir.count = kept;
    reservoir.worst = bar;
    return;
  }
  reservoir.worst = keep_best(keys, count, k);
  reservoir.count = k;
}

// Takes a key smaller than `worst`. Whether `worst` has changed.
SIMTILE_INLINE bool take(Reservoir& reservoir, Key* keys, int64_t capacity, int64_t k, Key key) {
  keys[reservoir.count++] = key;
  if (reservoir.count < capacity || capacity <= k) return false;
  shrink(reservoir, keys, k);
  return true;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
