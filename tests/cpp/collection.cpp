// What a collection refuses and says, and what of it is only in C++.
#include "mpembed/collection.h"

#include <limits>

#include "check.h"

using namespace mpembed;

// The message of what a call throws, if it is of that type; else nothing.
template <class Exception, class Call>
static std::string thrown(const Call& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  } catch (const std::exception&) {
  }
  return "";
}

static bool has(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::printf("no \"%s\" in \"%s\"\n", part.c_str(), text.c_str());
  return found;
}

static CollectionOptions with(OptimizerConfig optimizer) {
  CollectionOptions options;
  options.optimizer = std::move(optimizer);
  return options;
}

// A wholly right optimizer of each kind, changed in one parameter.
static OptimizerConfig changed(int32_t kind, const std::string& name, double value) {
  OptimizerConfig made{kind};
  for (int32_t i = 0; mpe_parameter_name(kind, i) != nullptr; ++i) {
    const std::string one = mpe_parameter_name(kind, i);
    made.parameters[one] = one == "lr_power" ? -0.5 : one == "weight_decay" ? 0.0 : 0.5;
  }
  made.parameters[name] = value;
  return made;
}

static std::string refusal(const OptimizerConfig& optimizer) {
  return thrown<std::invalid_argument>([&] { Collection({{"t", 4, 2}}, with(optimizer)); });
}

CASE(collection_parameters_have_ranges) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const struct {
    int32_t kind;
    const char* name;
    std::vector<double> right, wrong;
    const char* range;
  } rules[] = {
      {MPE_optimizer_sgd, "lr", {0.0, 3e38}, {-1e-9, 1e39, INFINITY, nan}, ">= 0"},
      {MPE_optimizer_ftrl, "lr", {1e-45}, {0.0, -1.0, 7e-46, INFINITY, nan}, "> 0 as a float"},
      {MPE_optimizer_adam, "beta1", {0.0, 0.999}, {-0.1, 1.0, nan}, ">= 0 and < 1"},
      {MPE_optimizer_lamb, "beta2", {0.0, 0.999}, {-0.1, 1.0, nan}, ">= 0 and < 1"},
      {MPE_optimizer_adagrad, "eps", {1e-45}, {0.0, -1.0, 7e-46, 1e39}, "> 0 as a float"},
      {MPE_optimizer_adagrad, "lr_decay", {0.0}, {-1.0, nan}, ">= 0"},
      {MPE_optimizer_sgd_momentum, "momentum", {0.0, 2.0}, {-0.1, nan}, ">= 0"},
      {MPE_optimizer_ftrl, "lr_power", {-1.0, 0.0}, {-1.1, 0.1, nan}, "in -1 .. 0"},
      {MPE_optimizer_ftrl, "l1", {0.0}, {-1.0, nan}, ">= 0"},
      {MPE_optimizer_ftrl, "l2", {0.0}, {-1.0, nan}, ">= 0"},
      {MPE_optimizer_ftrl, "beta", {0.0}, {-1.0, nan}, ">= 0"},
      {MPE_optimizer_sgd, "weight_decay", {0.0}, {-1.0, nan}, ">= 0"},
  };
  for (const auto& rule : rules) {
    const std::string name = rule.name;
    Collection emb({{"t", 4, 2}}, with(changed(rule.kind, "lr", 0.5)));
    for (const double value : rule.right) {
      CHECK(refusal(changed(rule.kind, name, value)).empty());
      emb.set_parameter("t", name, value);
    }
    for (const double value : rule.wrong) {
      const std::string made = refusal(changed(rule.kind, name, value));
      const std::string set =
          thrown<std::invalid_argument>([&] { emb.set_parameter("t", name, value); });
      char got[40];
      std::snprintf(got, sizeof(got), "got %g", value);
      for (const std::string& text : {made, set}) {
        CHECK(has(text, "'" + name + "'") && has(text, rule.range) && has(text, got));
      }
    }
  }
}

CASE(collection_a_refused_parameter_changes_nothing) {
  Collection emb({{"t", 4, 1}}, with(changed(MPE_optimizer_sgd, "lr", 0.25)));
  const float before = emb.rows("t", {1})[0];
  CHECK(!thrown<std::invalid_argument>([&] { emb.set_parameter("t", "lr", -1.0); }).empty());
  const std::vector<int64_t> indices{1}, offsets{0, 1};
  const float grad = 1.0f;
  float out;
  OpenBatch open = emb.forward(emb.batch(indices, offsets), &out);
  emb.backward(open, &grad);
  CHECK(emb.rows("t", {1})[0] == before - 0.25f);
}

CASE(collection_weight_decay_needs_a_mode) {
  OptimizerConfig optimizer = changed(MPE_optimizer_sgd, "weight_decay", 0.125);
  CHECK(has(refusal(optimizer), "'weight_decay' of the optimizer sgd of the options is 0.125"));
  CHECK(has(refusal(optimizer), "needs a decay_mode"));
  optimizer.decay_mode = MPE_decay_l2;
  CHECK(refusal(optimizer).empty());
  Collection emb({{"t", 4, 2}}, with(changed(MPE_optimizer_sgd, "lr", 0.5)));
  CHECK(has(thrown<std::invalid_argument>([&] { emb.set_parameter("t", "weight_decay", 0.1); }),
            "needs a decay_mode"));
}

CASE(collection_unknown_parameters_list_the_known_ones) {
  const std::string known = "it has 'lr', 'weight_decay', 'beta1', 'beta2', 'eps'";
  const std::string made = refusal(changed(MPE_optimizer_adam, "betas", 0.9));
  CHECK(has(made, "no parameter 'betas'") && has(made, known) && has(made, "'beta1' and 'beta2'"));
  Collection emb({{"t", 4, 2}}, with(changed(MPE_optimizer_adam, "lr", 0.5)));
  const auto set = [&](const char* table, const char* name) {
    return thrown<std::invalid_argument>([&] { emb.set_parameter(table, name, 0.5); });
  };
  CHECK(has(set("t", "betas"), "give betas as") && has(set("t", "rate"), known));
  CHECK(has(set("u", "lr"), "no table 'u'"));
  OptimizerConfig without{MPE_optimizer_rowwise_adagrad, {{"lr", 0.1}}};
  CHECK(has(refusal(without), "needs its parameter 'eps'"));
}

CASE(collection_of_trained_tables_needs_an_optimizer) {
  const std::vector<TableConfig> trained{{"t", 4, 2}};
  const std::string text = thrown<std::invalid_argument>([&] { Collection(trained, {}); });
  CHECK(has(text, "table 't' has no optimizer") && has(text, "trainable = false"));
  TableConfig frozen{"frozen", 4, 2}, own{"own", 4, 2};
  frozen.trainable = false;
  own.optimizer = changed(MPE_optimizer_adam, "lr", 0.5);
  Collection emb({frozen, own}, {});
  CHECK(has(thrown<std::invalid_argument>([&] { emb.set_parameter("frozen", "lr", 0.1); }),
            "table 'frozen' is frozen"));
  own.optimizer->parameters["beta1"] = 1.0;
  CHECK(has(thrown<std::invalid_argument>([&] { Collection({frozen, own}, {}); }),
            "'beta1' of the optimizer adam of table 'own'"));
}

// Two tables of one value a row; row 2 of "b" gets a gradient that is not finite.
CASE(collection_on_the_cpu_backward_throws_for_updates_that_are_not_finite) {
  Collection emb({{"a", 3, 1}, {"b", 3, 1}}, with(changed(MPE_optimizer_sgd, "lr", 1.0)));
  const float kept = emb.rows("b", {2})[0], a = emb.rows("a", {1})[0];
  const std::vector<int64_t> indices{1, 2}, offsets{0, 1, 2};
  const std::vector<float> grad{1.0f, INFINITY};
  std::vector<float> out(2);
  for (const bool as_list : {false, true}) {
    OpenBatch open = emb.forward(emb.batch(indices, offsets), out.data());
    const std::string text = thrown<std::runtime_error>([&] {
      if (as_list) emb.backward({{open, grad.data()}});
      emb.backward(open, grad.data());
    });
    CHECK(has(text, "1 row(s)") && has(text, "row 2 of table 'b'"));
    CHECK(open.handle() == nullptr);  // the batch was used
    emb.check();                      // nothing is left to say
  }
  CHECK(emb.rows("b", {2})[0] == kept && emb.rows("a", {1})[0] == a - 1.0f - 1.0f);
}

CASE(collection_backward_of_several_batches_is_one_update) {
  Collection emb({{"t", 3, 1}}, with(changed(MPE_optimizer_sgd, "lr", 0.5)));
  const float before = emb.rows("t", {1})[0];
  const std::vector<int64_t> indices{1}, offsets{0, 1};
  const float weight = 2.0f, grads[] = {1.0f, 0.25f};
  float out[2], weight_grad = 0.0f;
  OpenBatch one = emb.forward(emb.batch(indices, offsets), &out[0]);
  OpenBatch two = emb.prefetch(emb.batch(indices.data(), 1, offsets.data(), 2, &weight));
  emb.forward(two, &out[1]);
  emb.backward({{one, &grads[0]}, {two, &grads[1], &weight_grad}});
  CHECK(out[0] == before && out[1] == 2.0f * before && weight_grad == 0.25f * before);
  CHECK(emb.rows("t", {1})[0] == before - 0.5f * 1.5f);
  CHECK(has(thrown<std::invalid_argument>([&] { emb.backward({{one, &grads[0]}}); }),
            "used in a backward"));
}
