// How a Matrix comes from Python: as the tuple (address, dtype, width).
#pragma once

#include <pybind11/pybind11.h>

#include "common/matrix.h"

template <>
struct pybind11::detail::type_caster<pgm_fast::Matrix> {
  PYBIND11_TYPE_CASTER(pgm_fast::Matrix, const_name("tuple[int, int, int]"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0));
    value.dtype = static_cast<pgm_fast::Dtype>(PyLong_AsLong(PyTuple_GET_ITEM(source.ptr(), 1)));
    value.width = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 2));
    return !PyErr_Occurred();
  }
};
