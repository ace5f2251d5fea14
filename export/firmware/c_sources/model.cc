/* See @name@_model.h. C++11 or C99. */
#include "@name@_model.h"

#if defined(__cplusplus)
#define KAPNET_ALIGNED alignas(16)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define KAPNET_ALIGNED _Alignas(16)
#elif defined(__GNUC__)
#define KAPNET_ALIGNED __attribute__((aligned(16)))
#else
#error "Say here how this compiler aligns an array to 16 bytes."
#endif

@label_array@KAPNET_ALIGNED const unsigned char kapnet_model[KAPNET_MODEL_SIZE] = {
@bytes@
};
