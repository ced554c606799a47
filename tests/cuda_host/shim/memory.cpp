#include "memory.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>

namespace cuda_host {

void Clocks::begin_block(size_t threads) {
  ++epoch_;
  warps_.resize((threads + 31) / 32);
  for (WarpClock& warp : warps_) {
    warp = {};
    for (uint32_t& clock : warp.clock) clock = 1;
  }
}

void Clocks::syncwarp(int index, unsigned mask) {
  WarpClock& warp = warps_[size_t(index)];
  uint32_t met[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int other = 0; other < 32; ++other) met[other] = std::max(met[other], warp.seen[lane][other]);
    met[lane] = std::max(met[lane], warp.clock[lane]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    std::copy(met, met + 32, warp.seen[lane]);
    ++warp.clock[lane];
  }
}

void MemoryCheck::begin_block(Range dynamic, size_t threads) {
  ++block_;
  clocks.begin_block(threads);
  dynamic_ = dynamic;
  if (bytes_.size() < dynamic.bytes) bytes_.resize(dynamic.bytes);
}

// The state of bytes of dynamic shared memory, made new for the block.
MemoryCheck::Byte* MemoryCheck::find(const void* address, size_t bytes) {
  Byte* found = &bytes_[size_t(static_cast<const unsigned char*>(address) - dynamic_.begin)];
  for (Byte* byte = found; byte < found + bytes; ++byte)
    if (byte->block != block_) {
      *byte = {};
      byte->block = block_;
    }
  return found;
}

std::string MemoryCheck::conflict(const Access& other, const char* did, bool write) const {
  return std::string("race in shared memory: ") + (write ? "writes" : "reads") + " what thread " +
         std::to_string(other.thread) + " " + did + " at " + source_of(other.place) + ", and no " +
         "__syncthreads or __syncwarp of both lies between";
}

void MemoryCheck::remember_read(Byte& byte, const Access& access) {
  Access* free = nullptr;
  for (Access& read : byte.reads) {
    if (!read.place || clocks.ordered(read.time, read.thread, access.thread)) {
      // What is ordered before this read is ordered before whatever this read is ordered before.
      if (free) read.place = nullptr;
      if (!free) free = &read;
    }
  }
  if (free) {
    *free = access;
    return;
  }
  // All three are of one warp: one makes room for another warp's.
  const bool one_warp =
      byte.reads[0].thread / 32 == byte.reads[1].thread / 32 && byte.reads[1].thread / 32 == byte.reads[2].thread / 32;
  if (one_warp && access.thread / 32 != byte.reads[0].thread / 32) byte.reads[2] = access;
}

std::string MemoryCheck::access(int thread, const void* address, size_t bytes, bool write, const void* place) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(address) - dynamic_.begin;
  if (!dynamic_.contains(address, bytes))
    return std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes at offset " +
           std::to_string(offset) + " of dynamic shared memory, which has " + std::to_string(dynamic_.bytes) + " bytes";
  Byte* found = find(address, bytes);
  const Access access{clocks.now(thread), thread, place};
  for (Byte* byte = found; byte < found + bytes; ++byte) {
    if (byte->content == Content::copying)
      return std::string(write ? "writes" : "reads") + " shared memory to which thread " +
             std::to_string(byte->write.thread) + " copies asynchronously since " + source_of(byte->write.place) +
             " and has not waited";
    if (byte->write.place && !clocks.ordered(byte->write.time, byte->write.thread, thread))
      return conflict(byte->write, "wrote", write);
    if (write) {
      for (const Access& read : byte->reads)
        if (read.place && !clocks.ordered(read.time, read.thread, thread)) return conflict(read, "read", true);
      byte->write = access;
      byte->content = Content::written;
    } else {
      if (byte->content == Content::unwritten)
        return "reads shared memory that no thread of the block has written, at offset " +
               std::to_string(offset + (byte - found));
      remember_read(*byte, access);
    }
  }
  return {};
}

std::string MemoryCheck::copy_issued(int thread, const void* address, const void* place) {
  const std::string wrong = access(thread, address, 16, true, place);
  if (!wrong.empty()) return wrong;
  Byte* found = find(address, 16);
  for (int i = 0; i < 16; ++i) found[i].content = Content::copying;
  return {};
}

void MemoryCheck::copy_done(int thread, const void* address) {
  Byte* found = find(address, 16);
  for (int i = 0; i < 16; ++i) {
    found[i].content = Content::written;
    found[i].write.time = clocks.now(thread);
  }
}

std::string source_of(const void* place) {
  Dl_info info;
  if (!dladdr(place, &info) || !info.dli_fname) return "an unknown place";
  char offset[32];
  // A return address belongs to the instruction before it.
  const uintptr_t inside = reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  std::snprintf(offset, sizeof offset, "0x%zx", size_t(inside));
  std::string text, before;
  const std::string command = std::string("addr2line -i -e '") + info.dli_fname + "' " + offset + " 2>/dev/null";
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char line[512];
    while (std::fgets(line, sizeof line, pipe)) {
      std::string frame = line;
      frame.erase(std::min(frame.find('\n'), frame.find(" (")));  // " (discriminator 2)"
      if (frame.rfind("./", 0) == 0) frame.erase(0, 2);
      // The shim's own headers tell nobody anything.
      if (frame == before || frame.find("cuda_host/ptx_host.hpp") != std::string::npos) continue;
      before = frame;
      text += text.empty() ? frame : ", inlined at " + frame;
    }
    pclose(pipe);
  }
  return text.empty() ? std::string(info.dli_fname) + "+" + offset : text;
}

}  // namespace cuda_host
