// What a multi-rate optimizer has to look at before every step, without a Python loop: where the gradients are now, and
// whether a rate, a parameter, its state or the set of those that have a gradient changed. The same in Python:
// pgm_fast/optim/watch.py, which says more.
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "../common/multi_rate.h"

namespace pgm_fast::host {
namespace {

constexpr uintptr_t kEmpty = 16;  // the address of a gradient without elements; 0 says that there is none

enum Change : int { kNone = 0, kGradients = 1, kRates = 2, kRebuild = 4 };

// A hyper-parameter that is a plain number and may change from step to step, as the column of a GroupRow.
struct Column {
  PyObject* name;
  int64_t number;
};

// A number that CPython changes with every change of a dict, up to 3.11; later a look at every entry says the same.
#if PY_VERSION_HEX < 0x030C0000
uint64_t version_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
#else
uint64_t version_of(PyObject*) { return 0; }
#endif

// The entries of a dict, which must still be the same objects.
class Entries {
 public:
  explicit Entries(PyObject* dict) : dict_(py::reinterpret_borrow<py::object>(dict)), version_(version_of(dict)) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
      entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
    }
  }

  // changed(key, old, new) says whether it could take the new value in; false where it could not, or the keys are not
  // the same.
  template <class Changed>
  bool follow(Changed&& changed) {
    const uint64_t version = version_of(dict_.ptr());
    if (version != 0 && version == version_) return true;
    if (PyDict_GET_SIZE(dict_.ptr()) != static_cast<Py_ssize_t>(entries_.size())) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (auto& [known_key, known_value] : entries_) {
      if (!PyDict_Next(dict_.ptr(), &position, &key, &value) || key != known_key.ptr()) return false;
      if (value == known_value.ptr()) continue;
      if (!changed(key, known_value.ptr(), value)) return false;
      known_value = py::reinterpret_borrow<py::object>(value);
    }
    version_ = version;
    return true;
  }
  bool unchanged() {
    return follow([](PyObject*, PyObject*, PyObject*) { return false; });
  }

 private:
  py::object dict_;
  uint64_t version_;
  std::vector<std::pair<py::object, py::object>> entries_;
};

// A list, which must still hold the same objects.
class Members {
 public:
  explicit Members(PyObject* list) : list_(py::reinterpret_borrow<py::object>(list)) {
    for (const auto& item : list_) items_.push_back(py::reinterpret_borrow<py::object>(item));
  }

  bool unchanged() const {
    if (!PyList_Check(list_.ptr())) return true;
    if (PyList_GET_SIZE(list_.ptr()) != static_cast<Py_ssize_t>(items_.size())) return false;
    for (size_t i = 0; i < items_.size(); ++i) {
      if (PyList_GET_ITEM(list_.ptr(), i) != items_[i].ptr()) return false;
    }
    return true;
  }

 private:
  py::object list_;
  std::vector<py::object> items_;
};

// A plain number or one of numpy's, not a tensor: its value may be on another device.
bool is_number(PyObject* x) {
  return PyFloat_Check(x) || PyLong_Check(x) || (PyNumber_Check(x) && !THPVariable_Check(x));
}

// Two numbers in a tuple or list.
std::optional<std::array<double, 2>> pair_of(PyObject* x) {
  if ((!PyTuple_Check(x) && !PyList_Check(x)) || PySequence_Size(x) != 2) return std::nullopt;
  std::array<double, 2> pair;
  for (int i = 0; i < 2; ++i) {
    const auto item = py::reinterpret_steal<py::object>(PySequence_GetItem(x, i));
    if (!is_number(item.ptr())) return std::nullopt;
    pair[i] = PyFloat_AsDouble(item.ptr());
  }
  if (PyErr_Occurred()) {
    PyErr_Clear();
    return std::nullopt;
  }
  return pair;
}

bool same_strides(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  const auto sizes = a.sizes(), strides_a = a.strides(), strides_b = b.strides();
  if (b.sizes() != sizes) return false;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && strides_a[d] != strides_b[d]) return false;
  }
  return true;
}

struct Watched {
  // Python's objects, not their tensors: torch.utils.swap_tensors, by which modules move, refuses those that C++ holds
  // too
  py::object param;  // whose grad it is
  bool sharded;      // a DTensor, whose memory here is its _local_tensor
  const void* data;
  bool dense;      // whether a kernel walks that memory itself
  int64_t slot;    // of the gradients' table, 0 there while there is none; -1 where the parameter never had one
  bool copied;     // a copy of the gradient is at that address, made by whoever asks
  bool versioned;  // whether a write by anybody else takes new tables: a copy of the parameter is kept, master weights
  at::ScalarType gradient_dtype;
  uint32_t version = 0;
};

class Watch {
 public:
  // params: (parameter, its local tensor, slot, copied, versioned, gradient or None, for its dtype) each; groups: the
  // optimizer's own list; columns: name of a number -> its column, and "betas" -> the first of the five that are
  // derived of them; addresses of the tables.
  Watch(const py::list& params, const py::dict& state, const py::list& groups, const py::dict& columns,
        uintptr_t gradients, uintptr_t rows, uintptr_t rows_double)
      : state_(state.ptr()),
        group_list_(groups.ptr()),
        gradients_(reinterpret_cast<uint64_t*>(gradients)),
        rows_(reinterpret_cast<float*>(rows)),
        rows_double_(reinterpret_cast<double*>(rows_double)) {
    for (const auto& item : params) {
      const auto entry = py::reinterpret_borrow<py::tuple>(item);
      const py::object handle = entry[0], local = entry[1];
      const py::object gradient = entry[5];
      const at::Tensor& memory = THPVariable_Unpack(local.ptr());
      Watched w{handle,
                !handle.is(local),
                memory.const_data_ptr(),
                memory.is_non_overlapping_and_dense(),
                entry[2].cast<int64_t>(),
                entry[3].cast<bool>(),
                entry[4].cast<bool>(),
                at::kFloat};
      if (!gradient.is_none()) w.gradient_dtype = THPVariable_Unpack(gradient.ptr()).scalar_type();
      w.version = version_of(w);
      params_.push_back(std::move(w));
    }
    for (const auto& item : state) {
      if (PyDict_Check(item.second.ptr())) states_.emplace_back(item.second.ptr());
    }
    for (const auto& group : groups) {
      groups_.emplace_back(group.ptr());
      members_.emplace_back(PyDict_GetItemString(group.ptr(), "params"));
    }
    for (const auto& item : columns) {
      columns_.push_back({item.first.ptr(), item.second.cast<int64_t>()});
      names_.push_back(py::reinterpret_borrow<py::object>(item.first));
    }
  }

  // What changed since the last call, as a sum of Change; addresses and rates are in the tables by then, unless it says
  // kRebuild.
  int refresh() {
    int changes = kNone;
    if (!state_.unchanged() || !group_list_.unchanged()) return kRebuild;
    for (auto& entries : states_) {
      if (!entries.unchanged()) return kRebuild;
    }
    for (size_t group = 0; group < groups_.size(); ++group) {
      const bool followed = groups_[group].follow([&](PyObject* key, PyObject* old, PyObject* now) {
        changes |= kRates;
        return take_in(group, key, old, now);
      });
      if (!followed || !members_[group].unchanged()) return kRebuild;
    }
    for (auto& w : params_) {
      if (w.versioned && version_of(w) != w.version) return kRebuild;
      const int change =
          w.sharded ? look_at_shard(w) : look_at(w, tensor_of(w), tensor_of(w).unsafeGetTensorImpl()->grad(), true);
      if (change == kRebuild) return kRebuild;
      changes |= change;
    }
    return changes;
  }

  // Tells autograd that the parameters were written: what saved them for a backward pass must not use them any more.
  void bump_versions() {
    for (auto& w : params_) {
      if (w.slot < 0 || gradients_[w.slot] == 0) continue;
      tensor_of(w).unsafeGetTensorImpl()->bump_version();
      w.version = version_of(w);
    }
  }

 private:
  static const at::Tensor& tensor_of(const Watched& w) { return THPVariable_Unpack(w.param.ptr()); }
  static uint32_t version_of(const Watched& w) {
    return w.versioned ? tensor_of(w).unsafeGetTensorImpl()->version_counter().current_version() : 0;
  }

  bool take_in(size_t group, PyObject* key, PyObject* old, PyObject* now) {
    for (const Column& column : columns_) {
      // a loaded key is equal without being the same object
      if (column.name != key && !(PyUnicode_Check(key) && PyUnicode_Compare(column.name, key) == 0)) continue;
      if (PyUnicode_CompareWithASCIIString(column.name, "betas") == 0) return take_in_betas(group, column.number, now);
      if (!is_number(old) || !is_number(now)) return false;
      const double value = PyFloat_AsDouble(now), before = PyFloat_AsDouble(old);
      if (PyErr_Occurred()) {
        PyErr_Clear();
        return false;
      }
      // a momentum that comes or goes brings or takes state
      if ((value == 0.0) != (before == 0.0)) return false;
      write(group, column.number, value);
      return true;
    }
    return false;
  }

  // 1 - beta1, beta2, 1 - beta2, log beta1, log beta2
  bool take_in_betas(size_t group, int64_t first, PyObject* now) {
    const auto betas = pair_of(now);
    if (!betas || !((*betas)[0] > 0.0 && (*betas)[0] < 1.0 && (*betas)[1] > 0.0 && (*betas)[1] < 1.0)) return false;
    const auto [beta1, beta2] = *betas;
    const double derived[] = {1.0 - beta1, beta2, 1.0 - beta2, std::log(beta1), std::log(beta2)};
    for (int64_t k = 0; k < 5; ++k) write(group, first + k, derived[k]);
    return true;
  }

  void write(size_t group, int64_t column, double value) {
    const size_t at = group * (sizeof(multi_rate::GroupRow<double>) / sizeof(double)) + column;
    rows_[at] = static_cast<float>(value);
    rows_double_[at] = value;
  }

  int look_at_shard(const Watched& w) {
    const py::object local = w.param.attr("_local_tensor");
    const at::Tensor& grad = tensor_of(w).unsafeGetTensorImpl()->grad();
    if (!grad.defined()) return look_at(w, THPVariable_Unpack(local.ptr()), grad, true);
    const py::object handle = py::reinterpret_steal<py::object>(THPVariable_Wrap(grad));
    const py::object shard = handle.attr("_local_tensor");
    const bool placed = handle.attr("_spec").attr("placements").equal(w.param.attr("_spec").attr("placements"));
    return look_at(w, THPVariable_Unpack(local.ptr()), THPVariable_Unpack(shard.ptr()), placed);
  }

  // placed: whether the gradient's shards are cut as the parameter's are
  int look_at(const Watched& w, const at::Tensor& local, const at::Tensor& grad, bool placed) {
    if (!grad.defined()) {
      if (w.slot < 0 || gradients_[w.slot] == 0) return kNone;
      if (w.copied) return kRebuild;
      gradients_[w.slot] = 0;
      return kGradients;
    }
    if (w.slot < 0 || local.const_data_ptr() != w.data) return kRebuild;
    if (grad.layout() != at::kStrided || grad.scalar_type() != w.gradient_dtype || grad.device() != local.device())
      return kRebuild;
    const bool direct = placed && w.dense && same_strides(local, grad);
    if (direct == w.copied) return kRebuild;
    if (w.copied) return kNone;
    const auto memory = reinterpret_cast<uintptr_t>(grad.const_data_ptr());
    const uintptr_t address = memory == 0 ? kEmpty : memory;
    if (gradients_[w.slot] == address) return kNone;
    gradients_[w.slot] = address;
    return kGradients;
  }

  std::vector<Watched> params_;
  Entries state_;
  Members group_list_;
  std::vector<Members> members_;
  std::vector<Entries> states_, groups_;
  std::vector<Column> columns_;
  std::vector<py::object> names_;
  uint64_t* gradients_;
  float* rows_;
  double* rows_double_;
};

}  // namespace

void bind_multi_rate(py::module_& m) {
  py::class_<Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::dict&, const py::list&, const py::dict&, uintptr_t, uintptr_t,
                    uintptr_t>())
      .def("refresh", &Watch::refresh)
      .def("bump_versions", &Watch::bump_versions);
}

}  // namespace pgm_fast::host
