// What a kernel does before it writes a row of a table or a slot of a cache.
#pragma once

#include "mpembed/changed.h"
#include "mpembed/preimages.h"

MPE_BEGIN

// memory: the table or the cache, whose row or slot is written, states included.
template <class Memory>
inline void before_write(const Memory& memory, int64_t index) {
  mark_changed(memory.changed, index);
  if (memory.preimages != nullptr) keep_preimage(*memory.preimages, index);
}

MPE_END
