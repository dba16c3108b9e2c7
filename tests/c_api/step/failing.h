// A backend whose n-th call from now on finds no memory; its functions are another one's.
#pragma once

#include "mpembed/api.h"

namespace step_tests {

struct Failing {
  static inline mpe_backend table{};
  static inline const mpe_backend* real = nullptr;
  static inline int64_t calls_left = 0;  // until one fails; 0: none does
  static inline int64_t borrowed = 0;    // pieces of workspace that are not given back

  static bool now() { return calls_left > 0 && --calls_left == 0; }

  template <auto member>
  struct Wrap;
  template <class... Types, mpe_status (*mpe_backend::*member)(Types...)>
  struct Wrap<member> {
    static mpe_status call(Types... arguments) {
      return now() ? MPE_ERR_MEMORY : (real->*member)(arguments...);
    }
  };

  static mpe_status borrow(int64_t bytes, void* stream, void** out) {
    if (now()) return MPE_ERR_MEMORY;
    ++borrowed;
    return real->borrow(bytes, stream, out);
  }
  static void give_back(void* p, void* stream) {
    --borrowed;
    real->give_back(p, stream);
  }

  static const mpe_backend* over(const mpe_backend* backend) {
    real = backend;
    table = *backend;
    calls_left = borrowed = 0;
    table.borrow = borrow;
    table.give_back = give_back;
    // What works in memory of its own.
    table.prepare = Wrap<&mpe_backend::prepare>::call;
    table.dedup = Wrap<&mpe_backend::dedup>::call;
    table.cache_admit = Wrap<&mpe_backend::cache_admit>::call;
    table.cache_flush = Wrap<&mpe_backend::cache_flush>::call;
    table.lookup = Wrap<&mpe_backend::lookup>::call;
    table.weight_grad = Wrap<&mpe_backend::weight_grad>::call;
    table.update = Wrap<&mpe_backend::update>::call;
    table.write_rows = Wrap<&mpe_backend::write_rows>::call;
    return &table;
  }
};

}  // namespace step_tests
