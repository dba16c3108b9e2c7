// The manifest of a checkpoint: its tables and groups, held against the arrays.
#include <algorithm>

#include "step/checkpoint_file.h"

namespace mpembed::checkpoint {
namespace {

constexpr int64_t kVersion = 2;

#define MPE_NAME2(id, name) #name,
#define MPE_NAME3(id, name, type) #name,
constexpr const char* kFormats[] = {MPE_FORMATS(MPE_NAME3)};
constexpr const char* kPolicies[] = {MPE_POLICIES(MPE_NAME3)};
constexpr const char* kPoolings[] = {MPE_POOLINGS(MPE_NAME2)};
constexpr const char* kRoundings[] = {MPE_ROUNDINGS(MPE_NAME2)};
constexpr const char* kBounds[] = {"raise", "drop"};

[[noreturn]] void refuse(const std::string& what) {
  throw Error("its manifest is not valid: " + what);
}

const json::Value& member(const json::Value& object, const char* name) {
  const json::Value* found = object.find(name);
  if (found == nullptr) refuse(std::string("it has no ") + name);
  return *found;
}

const std::string& text(const json::Value& object, const char* name) {
  const json::Value& found = member(object, name);
  if (found.type != json::Type::kString) refuse(std::string(name) + " is not a text");
  return found.text;
}

int64_t number(const json::Value& value, const char* name, int64_t low, int64_t high) {
  int64_t found = 0;
  if (!value.get(&found) || found < low || found > high) {
    refuse(std::string(name) + " is not a whole number in its range");
  }
  return found;
}

template <size_t n>
int32_t choice(const json::Value& object, const char* name, const char* const (&names)[n]) {
  const std::string& found = text(object, name);
  for (size_t i = 0; i < n; ++i) {
    if (found == names[i]) return static_cast<int32_t>(i);
  }
  refuse(std::string(name) + " is '" + found + "', which this library does not know");
}

const std::vector<json::Value>& list(const json::Value& object, const char* name) {
  const json::Value& found = member(object, name);
  if (found.type != json::Type::kArray) refuse(std::string(name) + " is not a list");
  return found.items;
}

// Refuses an array that is not of this type and shape; extents of -1 are free.
const Array& expect(const File& file, const std::string& name, const char* type,
                    std::initializer_list<int64_t> shape) {
  const Array* array = file.find(name);
  if (array == nullptr) refuse(name + " is missing");
  const auto fits = [](int64_t has, int64_t wanted) { return wanted < 0 || has == wanted; };
  if (array->type != type ||
      !std::equal(array->shape.begin(), array->shape.end(), shape.begin(), shape.end(), fits)) {
    refuse(name + " has another type or shape");
  }
  return *array;
}

Table read_table(const File& file, const json::Value& object, size_t place) {
  Table table;
  mpe_checkpoint_table& fields = table.fields;
  table.name = text(object, "name");
  fields.num_rows = number(member(object, "num_embeddings"), "num_embeddings", 0, MPE_MAX_ROWS);
  fields.first_row = number(member(object, "first_row"), "first_row", 0, MPE_MAX_ROWS);
  fields.dim = static_cast<int32_t>(
      number(member(object, "embedding_dim"), "embedding_dim", 1, MPE_MAX_DIM));
  fields.precision = choice(object, "precision", kFormats);
  fields.pooling = choice(object, "pooling", kPoolings);
  const json::Value& id = member(object, "table_id");
  fields.table_id = static_cast<int32_t>(id.type == json::Type::kNull
                                             ? static_cast<int64_t>(place)
                                             : number(id, "table_id", 0, MPE_MAX_TABLES - 1));
  const int64_t row_bytes = mpe_row_bytes(fields.precision, fields.dim);
  expect(file, "table." + table.name + ".rows", "U8", {fields.num_rows, row_bytes});
  return table;
}

// What the arrays of a group's cache say of it.
void read_cache(const File& file, const json::Value& cache, Group* group) {
  mpe_checkpoint_group& fields = group->fields;
  fields.policy = choice(cache, "policy", kPolicies);
  const Array& rows = expect(file, group->name_of("rows"), "F32", {-1, -1, -1});
  const int64_t sets = rows.shape[0], ways = rows.shape[1];
  const bool power = (ways & (ways - 1)) == 0;
  if (ways < MPE_MIN_WAYS || ways > MPE_MAX_WAYS || !power || sets < 1 || sets > MPE_MAX_SETS ||
      sets * ways > MPE_MAX_SLOTS) {
    refuse(group->name_of("rows") + " has no valid number of sets or ways");
  }
  if (rows.shape[2] < fields.dim || rows.shape[2] > (1 + MPE_MAX_STATES) * int64_t{fields.dim}) {
    refuse(group->name_of("rows") + " has no valid number of columns");
  }
  fields.num_sets = sets;
  fields.ways = static_cast<int32_t>(ways);
  fields.slot_floats = rows.shape[2];
  expect(file, group->name_of("tags"), "U64", {sets, ways});
  expect(file, group->name_of("meta"), "U32", {sets, ways});
  expect(file, group->name_of("counters"), "U64", {2});
  if (mpe_policy_has_sketch(fields.policy) == 0) return;
  int64_t width = 1;
  while (width < sets * ways) width *= 2;
  expect(file, group->name_of("sketch"), "U8", {MPE_SKETCH_ROWS, width});
}

Group read_group(const File& file, const json::Value& object, const json::Value& cache,
                 const std::vector<Table>& tables, std::vector<bool>* used) {
  Group group;
  group.label = text(object, "label");
  for (const json::Value& item : list(object, "tables")) {
    const int64_t t = number(item, "a group's table", 0, static_cast<int64_t>(tables.size()) - 1);
    if ((*used)[static_cast<size_t>(t)]) refuse("a table is in two groups");
    (*used)[static_cast<size_t>(t)] = true;
    const mpe_checkpoint_table& table = tables[static_cast<size_t>(t)].fields;
    if (group.tables.empty()) group.fields.dim = table.dim;
    if (group.fields.dim != table.dim) refuse("the tables of a group have two dimensions");
    group.total_rows += table.num_rows;
    group.tables.push_back(static_cast<int32_t>(t));
  }
  if (group.tables.empty()) refuse("a group has no tables");
  group.fields.num_tables = static_cast<int32_t>(group.tables.size());
  if (member(object, "cached").type == json::Type::kTrue) read_cache(file, cache, &group);
  return group;
}

void read_checksums(File& file, const json::Value& sums) {
  for (const json::Value& item : sums.items) {
    Array* array = file.find(item.key);
    if (array == nullptr) refuse(item.key + " is missing");
    array->crc = static_cast<uint32_t>(number(item, "a checksum", 0, UINT32_MAX));
  }
}

}  // namespace

Manifest read_manifest(File& file) {
  json::Value root;
  if (!json::parse(file.manifest(), &root)) refuse("it is not valid JSON");
  if (text(root, "format") != "mpembed-checkpoint") refuse("it is of another program");
  const int64_t version = number(member(root, "version"), "version", 0, INT32_MAX);
  if (version != kVersion) {
    throw Error("checkpoint version " + std::to_string(version) + "; this library reads " +
                std::to_string(kVersion));
  }
  Manifest manifest;
  manifest.info.rounding = choice(root, "rounding", kRoundings);
  manifest.info.drop = choice(root, "bounds", kBounds);
  if (!member(root, "seed").get(&manifest.info.seed)) refuse("seed is not a whole number");
  if (!member(root, "step").get(&manifest.info.step)) refuse("step is not a whole number");
  for (const json::Value& table : list(root, "tables")) {
    if (manifest.tables.size() == MPE_MAX_TABLES) refuse("it has too many tables");
    manifest.tables.push_back(read_table(file, table, manifest.tables.size()));
  }
  std::vector<bool> used(manifest.tables.size());
  for (const json::Value& group : list(root, "groups")) {
    manifest.groups.push_back(
        read_group(file, group, member(root, "cache"), manifest.tables, &used));
  }
  if (std::find(used.begin(), used.end(), false) != used.end()) refuse("a table has no group");
  manifest.info.num_tables = static_cast<int32_t>(manifest.tables.size());
  manifest.info.num_groups = static_cast<int32_t>(manifest.groups.size());
  read_checksums(file, member(root, "crc32"));
  return manifest;
}

}  // namespace mpembed::checkpoint
