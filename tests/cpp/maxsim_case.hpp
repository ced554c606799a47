// Calls of MaxSim for its drivers. Inputs end at an unmapped page; what is masked, and what lies between rows, is NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "guarded.hpp"
#include "maxsim/args.hpp"

namespace {

using simtile::MaxsimSide;

struct Case {
  std::vector<int64_t> query_lengths, document_lengths;
  int64_t dimensions, stride;
  bool masked, normalize, with_candidates;
};

// One side: rows of both where and what they are.
struct Side {
  std::vector<int64_t> starts, ends;
  int64_t rows = 0;
  std::vector<double> x;
  Guarded data, mask;

  Side(std::mt19937& random, Element element, const std::vector<int64_t>& lengths, const Case& c)
      : data(bytes_of(lengths, element, c)), mask(static_cast<size_t>(sum(lengths))) {
    const size_t bytes = element_bytes(element);
    std::uniform_real_distribution<double> magnitude(0.05, 2);
    uint8_t* const there = static_cast<uint8_t*>(mask.data());
    for (const int64_t length : lengths) {
      starts.push_back(rows);
      rows += length;
      ends.push_back(rows);
    }
    for (int64_t r = 0; r < rows; r++) {
      there[r] = c.masked && random() % 3 == 0 ? 0 : 1;
      for (int64_t k = 0; k < c.dimensions; k++) {
        const double value = (random() & 1 ? 1 : -1) * magnitude(random);
        void* const at = static_cast<char*>(data.data()) + static_cast<size_t>(r * c.stride + k) * bytes;
        x.push_back(there[r] ? write(element, at, value) : std::numeric_limits<double>::quiet_NaN());
      }
    }
  }

  static int64_t sum(const std::vector<int64_t>& lengths) {
    int64_t total = 0;
    for (const int64_t length : lengths) total += length;
    return total;
  }
  static size_t bytes_of(const std::vector<int64_t>& lengths, Element element, const Case& c) {
    const int64_t rows = sum(lengths);
    return rows == 0 ? 0 : static_cast<size_t>((rows - 1) * c.stride + c.dimensions) * element_bytes(element);
  }
  bool is_there(int64_t row) const { return static_cast<const uint8_t*>(mask.data())[row] != 0; }

  MaxsimSide given(Element element, const Case& c) const {
    return {data.data(),
            nullptr,
            c.stride * static_cast<int64_t>(element_bytes(element)),
            static_cast<int64_t>(starts.size()),
            starts.data(),
            ends.data(),
            c.masked ? static_cast<const uint8_t*>(mask.data()) : nullptr};
  }
};

double norm(const double* row, const Case& c) {
  double sum = 0;
  for (int64_t k = 0; k < c.dimensions; k++) sum += row[k] * row[k];
  return c.normalize ? std::sqrt(sum) : 1;
}

}  // namespace
