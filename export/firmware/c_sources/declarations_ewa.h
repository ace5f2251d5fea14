/* The equal-weighted map, the same for all classes.
 * features: the model's output "features", KAPNET_MAP_SIZE * KAPNET_CHANNELS.
 */
kapnet_status kapnet_explain(const int8_t *features, kapnet_explanation *out);
