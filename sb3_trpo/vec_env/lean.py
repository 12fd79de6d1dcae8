"""SB3's DummyVecEnv without its deep copies."""

import copy
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs


class LeanVecEnv(DummyVecEnv):
    """
    ``DummyVecEnv`` with the same numbers and less copying: arrays are copied, infos are not copied deeply.

    Each info is a dict of its own. An array in it is the environment's: it changes later if the environment uses it again. A
    terminal observation is copied before the reset, so that it is the last one even there.

    :param env_fns: functions that make the environments
    """

    def step_rows(self) -> list[dict[str, Any]]:
        """
        Step every environment into the buffers and reset those whose episode ended.

        :return: their infos
        """
        infos = []
        for index, env in enumerate(self.envs):
            observation, reward, terminated, truncated, info = env.step(self.actions[index])
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                info["terminal_observation"] = copy.deepcopy(observation)
                observation, self.reset_infos[index] = env.reset()
            self.buf_rews[index] = reward
            self.buf_dones[index] = terminated or truncated
            self._save_obs(index, observation)
            infos.append(info)
        return infos

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment (see base class)."""
        infos = self.step_rows()
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), infos

    def _obs_from_buf(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, {key: rows.copy() for key, rows in self.buf_obs.items()})
