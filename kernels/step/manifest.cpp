// The manifest of a checkpoint, held against the arrays of its file. Python's side is
// mpembed/_checkpoint/checks.py.
#include "step/manifest.h"

namespace mpembed::checkpoint {
namespace {

constexpr int64_t kOldestVersion = 2, kVersion = 3;
constexpr int64_t kNoiseSince = 3;

// What a manifest has: these and no others.
constexpr const char* kFields[] = {
    "bounds",     "cache",    "crc32", "device", "format", "groups",  "on_nonfinite", "optimizer",
    "optimizers", "rounding", "seed",  "step",   "tables", "updates", "version",      "written_by"};
constexpr const char* kBounds[] = {"raise", "drop"};
constexpr const char* kNonfinite[] = {"raise", "skip"};

int64_t read_version(const json::Value& root) {
  const std::string& format = text(member(root, "format"), "format");
  if (format == "mpembed-delta") {
    throw Error(
        "is a delta, which continues another save: apply it in Python "
        "(EmbeddingBagCollection.load(path, deltas=[...])), save the result, and read that");
  }
  if (format != "mpembed-checkpoint") refuse("it is of another program");
  const int64_t version = number(member(root, "version"), "version", 0, INT32_MAX);
  if (version < kOldestVersion || version > kVersion) {
    throw Error("checkpoint version " + std::to_string(version) + "; this library reads " +
                std::to_string(kOldestVersion) + " to " + std::to_string(kVersion));
  }
  return version;
}

// Whether this is "cpu" or "cuda:N".
bool is_device(const std::string& name) {
  constexpr size_t kMaxDigits = 9;
  const std::string prefix = "cuda:", number = name.substr(std::min(prefix.size(), name.size()));
  if (name == "cpu") return true;
  return name.compare(0, prefix.size(), prefix) == 0 && !number.empty() &&
         number.size() <= kMaxDigits && (number == "0" || number[0] != '0') &&
         number.find_first_not_of("0123456789") == std::string::npos;
}

mpe_checkpoint_info read_info(const json::Value& root) {
  mpe_checkpoint_info info{};
  info.rounding = choice(member(root, "rounding"), "rounding", kRoundings);
  info.drop = choice(member(root, "bounds"), "bounds", kBounds);
  choice(member(root, "on_nonfinite"), "on_nonfinite", kNonfinite);
  if (!is_device(text(member(root, "device"), "device"))) refuse("device is not 'cpu' or 'cuda:N'");
  text(member(root, "written_by"), "written_by");
  if (!member(root, "seed").get(&info.seed)) refuse("seed is not a whole number");
  const int64_t step = number(member(root, "step"), "step", 0, MPE_MAX_STEP);
  number(member(root, "updates"), "updates", 0, step);  // each update takes a step
  info.step = static_cast<uint64_t>(step);
  return info;
}

void read_checksums(File& file, const json::Value& sums) {
  if (sums.type != json::Type::kObject) refuse("crc32 is not an object");
  for (const json::Value& item : sums.items) {
    Array* array = file.find(item.key);
    if (array == nullptr) refuse(item.key + " is missing");
    array->crc = static_cast<uint32_t>(number(item, "a checksum", 0, UINT32_MAX));
    array->has_crc = true;
  }
  for (const auto& [name, array] : file.arrays()) {
    if (!array.has_crc) refuse(name + " has no checksum");
    if (!array.expected) refuse("it has an array " + name + " too many");
  }
}

}  // namespace

Manifest read_manifest(File& file) {
  json::Value root;
  if (!json::parse(file.manifest(), &root)) refuse("it is not valid JSON");
  const int64_t version = read_version(root);
  check_fields(root, "it", kFields);
  Manifest manifest;
  manifest.info = read_info(root);
  manifest.tables = read_tables(file, root);
  manifest.groups = read_groups(file, root, manifest.tables);
  const int64_t tables = static_cast<int64_t>(manifest.tables.size());
  manifest.info.num_tables = static_cast<int32_t>(tables);
  manifest.info.num_groups = static_cast<int32_t>(manifest.groups.size());
  expect(file, "stats", "I64", {tables, MPE_NUM_STATS}, Holds::kStats);
  if (version >= kNoiseSince) expect(file, "noise", "I64", {tables, MPE_NUM_NOISE_SUMS});
  read_checksums(file, member(root, "crc32"));
  return manifest;
}

}  // namespace mpembed::checkpoint
