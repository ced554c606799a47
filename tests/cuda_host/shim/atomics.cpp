// Atomic additions. Among themselves they are no race; towards other accesses one counts as a read, so that a plain write without a
// barrier is found, while a plain read is only found by its result.
#include "block.hpp"

namespace cuda_host {

unsigned atomic_add(unsigned* address, unsigned value, Source source) {
  Block& block = running_block();
  block.current().operation = "atomicAdd";
  block.current().source = source;
#ifndef __SANITIZE_ADDRESS__  // without the compiler's hooks nobody has noted the stores that come before
  block.access(reinterpret_cast<uintptr_t>(address), sizeof *address, false, true, __builtin_return_address(0));
#endif
  const unsigned before = *address;
  *address = before + value;
  return before;
}

}  // namespace cuda_host
