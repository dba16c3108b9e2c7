// The checkpoint reader: what the file's header says, checked once, and its arrays.
#include "mpembed/checkpoint.h"

#include <new>

#include "step/checkpoint_file.h"

using mpembed::checkpoint::Error;
using mpembed::checkpoint::File;
using mpembed::checkpoint::Manifest;

struct mpe_checkpoint {
  File file;
  Manifest manifest;
  std::string error;
};

namespace {

// Runs `call` and keeps what it throws as the checkpoint's error.
template <class Call>
mpe_status guarded(mpe_checkpoint* checkpoint, Call call) {
  try {
    call();
    return MPE_OK;
  } catch (const Error& error) {
    checkpoint->error = checkpoint->file.path() + ": " + error.what();
    return MPE_ERR_VALUE;
  }
}

}  // namespace

extern "C" {

MPE_EXPORT mpe_checkpoint* mpe_checkpoint_open(const char* path) {
  mpe_checkpoint* made = nullptr;
  try {
    made = new mpe_checkpoint;
    guarded(made, [&] {
      made->file.open(path);
      made->manifest = mpembed::checkpoint::read_manifest(made->file);
    });
    return made;
  } catch (const std::bad_alloc&) {
    delete made;
    return nullptr;
  }
}

MPE_EXPORT void mpe_checkpoint_close(mpe_checkpoint* checkpoint) { delete checkpoint; }

MPE_EXPORT const char* mpe_checkpoint_error(const mpe_checkpoint* checkpoint) {
  return checkpoint->error.empty() ? nullptr : checkpoint->error.c_str();
}

MPE_EXPORT void mpe_checkpoint_describe(const mpe_checkpoint* checkpoint,
                                        mpe_checkpoint_info* out) {
  *out = checkpoint->manifest.info;
}

MPE_EXPORT void mpe_checkpoint_get_table(const mpe_checkpoint* checkpoint, int32_t table,
                                         mpe_checkpoint_table* out) {
  const mpembed::checkpoint::Table& found = checkpoint->manifest.tables[static_cast<size_t>(table)];
  *out = found.fields;
  out->name = found.name.c_str();
}

MPE_EXPORT void mpe_checkpoint_get_group(const mpe_checkpoint* checkpoint, int32_t group,
                                         mpe_checkpoint_group* out) {
  const mpembed::checkpoint::Group& found = checkpoint->manifest.groups[static_cast<size_t>(group)];
  *out = found.fields;
  out->label = found.label.c_str();
  out->tables = found.tables.data();
}

MPE_EXPORT int64_t mpe_checkpoint_bytes(const mpe_checkpoint* checkpoint, const char* name) {
  const mpembed::checkpoint::Array* found = checkpoint->file.find(name);
  return found == nullptr ? -1 : found->bytes;
}

MPE_EXPORT mpe_status mpe_checkpoint_read(mpe_checkpoint* checkpoint, const char* name, void* to,
                                          int64_t bytes) {
  try {
    return guarded(checkpoint, [&] {
      checkpoint->file.read(name, to, bytes);
      const mpembed::checkpoint::Array* array = checkpoint->file.find(name);
      mpembed::checkpoint::check_values(checkpoint->file, &checkpoint->manifest, name, *array, to);
    });
  } catch (const std::bad_alloc&) {
    return MPE_ERR_MEMORY;
  }
}
}
