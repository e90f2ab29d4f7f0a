"""What the folder of a run holds, and who may write there: files, checkpoints whole or in shards, the data's
fingerprints, the place in a run where training stops and goes on."""
