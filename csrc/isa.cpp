#include "isa.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace simtile {
namespace {

struct Level {
  const KernelTable& (*table)();
  bool available;
};

#if defined(__x86_64__)

// Which of them this machine can run.
struct Levels {
  bool baseline, avx2, avx512, avx512_vnni, avx512_bf16, avx512_amx;
};

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf beyond what the processor reports.
Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1; }

// XCR0: the register states that the operating system saves at a context switch.
uint64_t enabled_states() {
  if (!bit(cpuid(1).ecx, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux gives a process the 8 KiB of tile registers only when it asks (since 5.16).
// Refused when a thread's alternate signal stack is too small to save them.
bool request_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Levels available() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;  // XCR0 bits
  const Registers basic = cpuid(1), features = cpuid(7), more = cpuid(7, 1);
  const uint64_t states = enabled_states();

  const bool avx2 = (states & kYmm) == kYmm && bit(basic.ecx, 28) /* AVX */ && bit(basic.ecx, 12) /* FMA */ &&
                    bit(basic.ecx, 29) /* F16C */ && bit(basic.ecx, 23) /* POPCNT */ && bit(features.ebx, 5) /* AVX2 */;
  const bool avx512 = avx2 && (states & kZmm) == kZmm && bit(features.ebx, 16) /* F */ &&
                      bit(features.ebx, 17) /* DQ */ && bit(features.ebx, 28) /* CD */ &&
                      bit(features.ebx, 30) /* BW */ && bit(features.ebx, 31) /* VL */;
  const bool vnni = avx512 && bit(features.ecx, 11) /* VNNI */ && bit(features.ecx, 12) /* BITALG */ &&
                    bit(features.ecx, 14) /* VPOPCNTDQ */;
  const bool bf16 = vnni && bit(more.eax, 5) /* AVX512_BF16 */;
  const bool amx = bf16 && (states & kTiles) == kTiles && bit(features.edx, 22) /* AMX-BF16 */ &&
                   bit(features.edx, 24) /* AMX-TILE */ && bit(features.edx, 25) /* AMX-INT8 */ && request_amx();
  return {true, avx2, avx512, vnni, bf16, amx};
}

#elif defined(__aarch64__)

struct Levels {
  bool neon, neon_dot, neon_mm;
};

#if defined(__linux__)
Levels available() {
  // Bits of AT_HWCAP and AT_HWCAP2 as in the kernel's asm/hwcap.h, which older headers lack in part.
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  auto has = [](unsigned long word, int index) { return ((word >> index) & 1) != 0; };
  const bool dot = has(caps, 20) /* ASIMDDP */ && has(caps, 10) /* ASIMDHP */ && has(caps, 9) /* FPHP */;
  const bool mm = dot && has(caps2, 13) /* I8MM */ && has(caps2, 14) /* BF16 */;
  return {true, dot, mm};
}
#else
Levels available() {
  auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  const bool dot = has("hw.optional.arm.FEAT_DotProd") && has("hw.optional.arm.FEAT_FP16");
  const bool mm = dot && has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16");
  return {true, dot, mm};
}
#endif

#endif

// Of this build: CMake's SIMTILE_EACH_LEVEL names them in their order.
std::vector<Level> levels() {
  const Levels can_run = available();
#define SIMTILE_LEVEL(level) {level::kernel_table, can_run.level},
  return {SIMTILE_EACH_LEVEL};
#undef SIMTILE_LEVEL
}

const std::vector<Level>& all_levels() {
  static const std::vector<Level> all = levels();
  return all;
}

const char* forced_name() {
  const char* name = std::getenv("SIMTILE_ISA");
  return name != nullptr && name[0] != '\0' ? name : nullptr;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

struct Choice {
  const KernelTable* table;
  bool forced;
};

Choice choose() {
  const char* name = forced_name();
  if (name == nullptr) return {detected_levels().back(), false};
  std::vector<std::string> built, usable;
  for (const Level& level : all_levels()) {
    const KernelTable& table = level.table();
    if (level.available && std::strcmp(table.level, name) == 0) return {&table, true};
    built.push_back(table.level);
    if (level.available) usable.push_back(table.level);
  }
  for (const std::string& level : built) {
    if (level == name) {
      throw std::runtime_error("SIMTILE_ISA: this machine cannot run level '" + level +
                               "'; it can run: " + join(usable));
    }
  }
  throw std::invalid_argument("SIMTILE_ISA: '" + std::string(name) +
                              "' is not a level of this build; expected one of: " + join(built));
}

const Choice& choice() {
  static const Choice chosen = choose();  // tried again at the next call if this one throws
  return chosen;
}

std::atomic<const KernelTable*> replacement{nullptr};

}  // namespace

const std::vector<const KernelTable*>& detected_levels() {
  static const std::vector<const KernelTable*> detected = [] {
    std::vector<const KernelTable*> tables;
    for (const Level& level : all_levels()) {
      if (level.available) tables.push_back(&level.table());
    }
    return tables;
  }();
  return detected;
}

const KernelTable& kernels() {
  const KernelTable* table = replacement.load(std::memory_order_relaxed);
  return table ? *table : *choice().table;
}

bool use_level(const char* name) {
  const KernelTable* found = nullptr;
  for (const KernelTable* table : detected_levels()) {
    if (name != nullptr && std::strcmp(table->level, name) == 0) found = table;
  }
  if (name != nullptr && found == nullptr) return false;
  replacement.store(found, std::memory_order_relaxed);
  return true;
}

bool level_is_forced() { return choice().forced; }

std::string cpu_vendor() {
#if defined(__x86_64__)
  const Registers r = cpuid(0);
  std::string vendor(12, '\0');
  std::memcpy(&vendor[0], &r.ebx, 4);
  std::memcpy(&vendor[4], &r.edx, 4);
  std::memcpy(&vendor[8], &r.ecx, 4);
  return vendor;
#else
  return "";
#endif
}

std::string cpu_brand() {
#if defined(__x86_64__)
  if (cpuid(0x80000000u).eax < 0x80000004u) return "";
  char brand[49] = {};
  for (uint32_t part = 0; part < 3; ++part) {
    const Registers r = cpuid(0x80000002u + part);
    const uint32_t words[4] = {r.eax, r.ebx, r.ecx, r.edx};
    std::memcpy(brand + 16 * part, words, sizeof words);
  }
  const std::string padded = brand;
  const size_t first = padded.find_first_not_of(' ');
  if (first == std::string::npos) return "";
  return padded.substr(first, padded.find_last_not_of(' ') - first + 1);
#else
  return "";
#endif
}

}  // namespace simtile
