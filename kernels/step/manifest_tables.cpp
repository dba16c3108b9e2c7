// The tables of a manifest and what trains them.
#include <algorithm>
#include <array>
#include <set>

#include "own_optimizer.h"
#include "step/manifest.h"

namespace mpembed::checkpoint {
namespace {

constexpr const char* kTableFields[] = {"embedding_dim", "first_row", "init",           "lr",
                                        "lr_now",        "name",      "num_embeddings", "optimizer",
                                        "placement",     "pooling",   "precision",      "table_id",
                                        "total_rows",    "trainable"};
constexpr const char* kPlacements[] = {"device", "host"};

// What of an optimizer says which tables share a cache, and which states they have.
struct Optimizer {
  int32_t kind, decay;
};

// The number of an optimizer of the registry, or of one of the caller's own.
int32_t optimizer_kind(const json::Value& value) {
  const std::string& name = text(value, "an optimizer");
  for (int32_t kind = 0; kind < MPE_NUM_OPTIMIZERS; ++kind) {
    if (name == kOptimizers[kind]) return kind;
  }
  for (int32_t kind = MPE_NUM_OPTIMIZERS; own_optimizer(kind) != nullptr; ++kind) {
    if (name == own_optimizer(kind)->name) return kind;
  }
  throw Error("there is no optimizer '" + name +
              "' in this process: mpe_register_optimizer adds those of your own");
}

std::vector<Optimizer> read_optimizers(const json::Value& root, size_t most) {
  std::vector<Optimizer> optimizers;
  const std::vector<json::Value>& items = list(root, "optimizers");
  if (items.size() > most) refuse("it has more optimizers than tables have");
  for (const json::Value& item : items) {
    if (item.type != json::Type::kArray || item.items.size() != 2 ||
        item.items[1].type != json::Type::kObject) {
      refuse("an optimizer is not a kind with its settings");
    }
    const json::Value& decay = member(item.items[1], "weight_decay_mode");
    optimizers.push_back(
        {optimizer_kind(item.items[0]), choice(decay, "weight_decay_mode", kDecays)});
  }
  return optimizers;
}

// An optimizer's place among so many, -1 if there is none.
int64_t place_of(const json::Value& object, size_t count) {
  return number_or(-1, object, "optimizer", 0, static_cast<int64_t>(count) - 1);
}

void read_training(const json::Value& object, const std::vector<Optimizer>& optimizers,
                   int64_t shared, Table* table) {
  const int64_t own = place_of(object, optimizers.size());
  const bool trainable = truth(object, "trainable");
  for (const char* rate : {"lr", "lr_now"}) {
    if (is_null(object, rate)) continue;
    if (member(object, rate).type != json::Type::kNumber) {
      refuse(std::string(rate) + " is not a number");
    }
  }
  const bool rate = !is_null(object, "lr");
  if (rate == is_null(object, "lr_now")) refuse("lr and lr_now of a table do not fit");
  if (!trainable) {
    if (own >= 0 || rate) refuse("a frozen table has an optimizer or a rate");
    return;
  }
  const int64_t place = own < 0 ? shared : own;
  if (place < 0) refuse("a table has no optimizer");
  const Optimizer& found = optimizers[static_cast<size_t>(place)];
  table->optimizer = found.kind;
  table->decay = found.decay;
}

// States are FP32, or bf16 in U16; their values are not read here.
void expect_states(File& file, const Table& table) {
  for (int32_t i = 0; table.optimizer >= 0 && i < mpe_num_states(table.optimizer); ++i) {
    const std::string name = "table." + table.name + "." + mpe_state_name(table.optimizer, i);
    const Array* found = file.find(name);
    const char* type = found != nullptr && found->type == "U16" ? "U16" : "F32";
    if (mpe_state_shape(table.optimizer, i) == MPE_STATE_ROW) {
      expect(file, name, type, {table.fields.num_rows});
    } else {
      expect(file, name, type, {table.fields.num_rows, table.fields.dim});
    }
  }
}

void read_table(const json::Value& object, int64_t place, bool on_cpu, Table* table) {
  mpe_checkpoint_table& fields = table->fields;
  table->name = text(member(object, "name"), "name");
  if (table->name.empty()) refuse("a table has no name");
  fields.num_rows = number(member(object, "num_embeddings"), "num_embeddings", 0, MPE_MAX_ROWS);
  fields.first_row =
      number(member(object, "first_row"), "first_row", 0, MPE_MAX_ROWS - fields.num_rows);
  number_or(0, object, "total_rows", fields.first_row + fields.num_rows, MPE_MAX_ROWS);
  fields.dim = static_cast<int32_t>(
      number(member(object, "embedding_dim"), "embedding_dim", 1, MPE_MAX_DIM));
  fields.precision = choice(member(object, "precision"), "precision", kFormats);
  fields.pooling = choice(member(object, "pooling"), "pooling", kPoolings);
  fields.table_id =
      static_cast<int32_t>(number_or(place, object, "table_id", 0, MPE_MAX_TABLES - 1));
  table->host = choice(member(object, "placement"), "placement", kPlacements) == 1;
  if (table->host && on_cpu) refuse("placement is 'host' of a table on the CPU");
}

// Two tables may not hold the same rows of a table.
void check_shards(const std::vector<Table>& tables) {
  std::vector<std::array<int64_t, 3>> spans;  // of which table, the first row, and the end
  for (const Table& table : tables) {
    const mpe_checkpoint_table& fields = table.fields;
    if (fields.num_rows == 0) continue;
    spans.push_back({fields.table_id, fields.first_row, fields.first_row + fields.num_rows});
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i][0] == spans[i - 1][0] && spans[i][1] < spans[i - 1][2]) {
      refuse("two tables have the same table_id and share rows");
    }
  }
}

}  // namespace

std::vector<Table> read_tables(File& file, const json::Value& root) {
  const std::vector<json::Value>& items = list(root, "tables");
  if (items.empty() || items.size() > MPE_MAX_TABLES) refuse("it has no tables, or too many");
  const std::vector<Optimizer> optimizers = read_optimizers(root, items.size() + 1);
  const int64_t shared = place_of(root, optimizers.size());
  const bool on_cpu = text(member(root, "device"), "device") == "cpu";
  std::vector<Table> tables;
  std::set<std::string> names;
  for (const json::Value& item : items) {
    const size_t place = tables.size();
    Table& table = tables.emplace_back();
    check_fields(item, "a table", kTableFields);
    read_table(item, static_cast<int64_t>(place), on_cpu, &table);
    if (!names.insert(table.name).second) refuse("two tables have the same name");
    read_training(item, optimizers, shared, &table);
    const int64_t row_bytes = mpe_row_bytes(table.fields.precision, table.fields.dim);
    expect(file, "table." + table.name + ".rows", "U8", {table.fields.num_rows, row_bytes},
           Holds::kTableRows, place);
    expect_states(file, table);
  }
  check_shards(tables);
  return tables;
}

}  // namespace mpembed::checkpoint
