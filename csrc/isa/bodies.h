// All that is compiled once per instruction set, in namespace MIM4DD_ISA.
#pragma once

#include "../conv3x3.inl"
#include "../conv3x3_narrow.inl"
#include "../feature_rows.inl"
#include "../flat_pass.inl"
#include "../logit_rows.inl"
#include "../norm_relu_pool.inl"
#include "../panels.inl"
#include "../product.inl"
#include "../scatter_add_rows.inl"
