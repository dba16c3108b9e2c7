// What rows were at a moment, for a reader that copies them while they are trained.
//
// Before a kernel first changes a row, it copies the row's memory into a log. The reader copies a
// chunk of rows whenever it likes, without a lock, and then puts back what the log has of them:
//
//   kernel: set the row's bit, take a place in the log, copy the row there, publish, write the row
//   reader: copy the chunk, read where the log ends, set the chunk's bits, put rows back
//
// If the copy has any byte of a write, the log that the reader sees has the write's place. A row
// whose bit the reader has set needs no copy any more.
//
// An entry of the log: the row's number + 1 (0: not yet complete), its owner, the row's memory.
#ifndef MPEMBED_PREIMAGES_H
#define MPEMBED_PREIMAGES_H

#include <sched.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "mpembed/api_types.h"
#include "mpembed/macros.h"

#if defined(__SANITIZE_THREAD__)
#define MPE_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MPE_THREAD_SANITIZER 1
#endif
#endif
#if !defined(MPE_THREAD_SANITIZER)
#define MPE_THREAD_SANITIZER 0
#endif

MPE_BEGIN

// What stands before it happens before what stands behind it. The sanitizer does not know fences;
// where it runs, stores and loads are not reordered anyway.
inline void order_memory() {
#if MPE_THREAD_SANITIZER
  __asm__ volatile("" ::: "memory");
#else
  __atomic_thread_fence(__ATOMIC_ACQ_REL);
#endif
}

// Whether a row's bit was already set. One thread at a time writes a row.
inline bool set_kept(mpe_preimages& images, int64_t row) {
  uint32_t* const word = images.kept + row / 32;
  const uint32_t bit = uint32_t{1} << (row % 32);
  if ((__atomic_load_n(word, __ATOMIC_ACQUIRE) & bit) != 0) return true;
  return (__atomic_fetch_or(word, bit, __ATOMIC_ACQ_REL) & bit) != 0;
}

constexpr int64_t kPreimageHeader = 16;  // bytes of an entry before the row

// Copies a row into the log unless it is kept already. Before each write of the row.
__attribute__((noinline)) inline void keep_preimage(mpe_preimages& images, int64_t row) {
  if (set_kept(images, row)) return;
  mpe_preimage_log& log = *images.log;
  const int64_t place = __atomic_fetch_add(&log.used, images.entry_bytes, __ATOMIC_ACQ_REL);
  if (place + images.entry_bytes > log.capacity) return;
  uint64_t* const header = reinterpret_cast<uint64_t*>(log.data + place);
  header[1] = static_cast<uint64_t>(images.owner);
  uint8_t* to = log.data + place + kPreimageHeader;
  for (int32_t i = 0; i < images.num_spans; ++i) {
    const mpe_span& span = images.spans[i];
    memcpy(to, span.data + row * span.bytes, static_cast<size_t>(span.bytes));
    to += span.bytes;
  }
  __atomic_store_n(header, static_cast<uint64_t>(row) + 1, __ATOMIC_RELEASE);
  order_memory();
}

// Reads bytes that others may write meanwhile; what has changed is put right later.
#if MPE_THREAD_SANITIZER
__attribute__((no_sanitize("thread"))) inline void copy_while_written(uint8_t* to,
                                                                      const uint8_t* from,
                                                                      int64_t bytes) {
  const volatile uint8_t* p = from;
  for (int64_t i = 0; i < bytes; ++i) to[i] = p[i];
}
#else
inline void copy_while_written(uint8_t* to, const uint8_t* from, int64_t bytes) {
  memcpy(to, from, static_cast<size_t>(bytes));
}
#endif

// Reads all rows of a log's owners in chunks, each once. One thread at a time.
class PreimageReader {
 public:
  explicit PreimageReader(mpe_preimage_log& log) : log_(log) {}

  // Adds rows; chunks have a multiple of 32 rows, but for the last one.
  void add(mpe_preimages& images, int64_t num_rows, int64_t chunk_rows) {
    images.owner = static_cast<int32_t>(owners_.size());
    images.log = &log_;
    images.entry_bytes = kPreimageHeader;
    for (int32_t i = 0; i < images.num_spans; ++i) images.entry_bytes += images.spans[i].bytes;
    images.entry_bytes = (images.entry_bytes + 7) / 8 * 8;
    const int64_t chunks = (num_rows + chunk_rows - 1) / chunk_rows;
    owners_.push_back(Owner{num_rows, chunk_rows, images.entry_bytes,
                            std::vector<int64_t>(static_cast<size_t>(chunks), -1)});
  }

  // Copies the memory of a chunk's rows as they were, each span's to one of outs.
  void read(const mpe_preimages& images, int64_t chunk, uint8_t* const* outs) {
    const Owner& owner = owners_[static_cast<size_t>(images.owner)];
    const int64_t first = chunk * owner.chunk_rows;
    const int64_t count = std::min(owner.chunk_rows, owner.num_rows - first);
    for (int32_t i = 0; i < images.num_spans; ++i) {
      const mpe_span& span = images.spans[i];
      copy_while_written(outs[i], span.data + first * span.bytes, count * span.bytes);
    }
    order_memory();
    const int64_t used = __atomic_load_n(&log_.used, __ATOMIC_ACQUIRE);
    for (int64_t word = first / 32; word < (first + count + 31) / 32; ++word) {
      __atomic_store_n(images.kept + word, ~uint32_t{0}, __ATOMIC_RELEASE);
    }
    if (used > log_.capacity) throw std::runtime_error("more rows were written than could be kept");
    while (sorted_ < used) sort_entry();
    for (int64_t place = owner.heads[static_cast<size_t>(chunk)]; place >= 0;
         place = static_cast<int64_t>(header(place)[1])) {
      put_back(images, place, first, outs);
    }
  }

 private:
  struct Owner {
    int64_t num_rows, chunk_rows, entry_bytes;
    std::vector<int64_t> heads;  // of each chunk's list of entries
  };

  uint64_t* header(int64_t place) const { return reinterpret_cast<uint64_t*>(log_.data + place); }
  int64_t row_at(int64_t place) const {
    uint64_t row = 0;
    while ((row = __atomic_load_n(header(place), __ATOMIC_ACQUIRE)) == 0) sched_yield();
    return static_cast<int64_t>(row - 1);
  }

  // Adds the next entry to the list of its chunk; the next one's place replaces the owner.
  void sort_entry() {
    const int64_t row = row_at(sorted_);
    uint64_t& link = header(sorted_)[1];
    Owner& owner = owners_[link];
    int64_t& head = owner.heads[static_cast<size_t>(row / owner.chunk_rows)];
    link = static_cast<uint64_t>(head);
    head = sorted_;
    sorted_ += owner.entry_bytes;
  }

  void put_back(const mpe_preimages& images, int64_t place, int64_t first,
                uint8_t* const* outs) const {
    const uint8_t* from = log_.data + place + kPreimageHeader;
    const int64_t i = row_at(place) - first;
    for (int32_t s = 0; s < images.num_spans; ++s) {
      const int64_t bytes = images.spans[s].bytes;
      memcpy(outs[s] + i * bytes, from, static_cast<size_t>(bytes));
      from += bytes;
    }
  }

  mpe_preimage_log& log_;
  std::vector<Owner> owners_;
  int64_t sorted_ = 0;  // bytes of the log
};

MPE_END

#endif
