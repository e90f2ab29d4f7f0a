#include "serving.h"

namespace pgm_fast::host {
namespace {

std::vector<Op*>& ops() {
  static std::vector<Op*> all;
  return all;
}

}  // namespace

Op::Op(const char* name) : name_(name) { ops().push_back(this); }

const std::vector<Op*>& Op::all() { return ops(); }

Op* Op::named(const std::string& name) {
  for (Op* op : ops()) {
    if (op->name_ == name) return op;
  }
  return nullptr;
}

void Op::serve(const std::string& name, at::ScalarType dtype) {
  if (Op* op = named(name)) op->served_.fetch_or(uint64_t{1} << static_cast<int>(dtype));
}

void Op::set_python(const std::string& name, const py::object& dispatch, const py::object& reference) {
  if (Op* op = named(name)) {
    op->dispatch_ = dispatch.inc_ref().ptr();
    op->reference_ = reference.inc_ref().ptr();
  }
}

void Op::forget() {
  for (Op* op : ops()) op->served_ = 0;
}

std::map<std::string, std::string> Op::schemas() {
  const std::string all = " " PGM_FAST_SCHEMAS " ";  // name:digest name:digest ...
  std::map<std::string, std::string> found;
  for (const Op* op : ops()) {
    const std::string key = " " + op->name_ + ":";
    const auto at = all.find(key);
    const auto begin = at + key.size();
    found[op->name_] = at == std::string::npos ? "" : all.substr(begin, all.find(' ', begin) - begin);
  }
  return found;
}

}  // namespace pgm_fast::host
