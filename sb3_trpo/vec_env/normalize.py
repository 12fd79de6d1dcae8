"""SB3's VecNormalize, with the last observations of episodes normalised together."""

import pickle
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

Observations = np.ndarray | dict[str, np.ndarray]


def _sum(rows: np.ndarray) -> np.ndarray:
    """Return what ``np.add.reduce`` gives along the first axis."""
    if rows.ndim == 2 and rows.shape[1] > 1 and rows.flags.c_contiguous:
        # It adds the same rows in the same order, in a third of the time
        return np.einsum("ij->j", rows)
    return np.add.reduce(rows, axis=0)


def _update(rms: RunningMeanStd, rows: np.ndarray) -> None:
    """Take rows into running statistics: SB3's numbers, with the mean made once and not for the variance again."""
    if type(rms) is not RunningMeanStd or rows.dtype not in (np.float32, np.float64) or not rows.size:
        rms.update(rows)
        return
    mean = _sum(rows) / len(rows)
    squares = rows - mean
    np.multiply(squares, squares, out=squares)
    rms.update_from_moments(mean, _sum(squares) / len(rows), len(rows))


def _stacked(rows: list[Any]) -> np.ndarray:
    """Return what ``np.stack`` gives, which takes a while for many small arrays."""
    arrays = list(map(np.asarray, rows))
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape) if arrays[0].ndim else np.stack(arrays)


class FastVecNormalize(VecNormalize):
    """
    ``VecNormalize`` with the same numbers for less time, the more so the more environments there are.

    SB3 copies and normalises the last observation of each episode that ends on its own; here those of a step are one array.
    ``save`` writes the file that SB3's ``VecNormalize`` writes, and ``load`` reads either's. The parameters are SB3's.
    """

    def step_wait(self) -> VecEnvStepReturn:
        """Step, update the statistics and normalise (see base class)."""
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray | dict)
        self.old_obs, self.old_reward = observations, rewards
        if self.training and self.norm_obs:
            for rms, rows in self._statistics(observations):
                _update(rms, rows)
        normalized = self.normalize_obs(observations)
        if self.training:
            self._update_reward(rewards)
        rewards = self.normalize_reward(rewards)
        ended = [infos[index] for index in np.flatnonzero(dones).tolist()]
        self._normalize_last([info for info in ended if "terminal_observation" in info])
        self.returns[dones] = 0
        return normalized, rewards, dones, infos

    def _update_reward(self, reward: np.ndarray) -> None:
        self.returns = self.returns * self.gamma + reward
        _update(self.ret_rms, self.returns)

    def _statistics(self, observations: Observations) -> list[tuple[RunningMeanStd, np.ndarray]]:
        """Pair running statistics with what they are of."""
        found: Any = self.obs_rms
        if isinstance(observations, dict):
            return [(rms, observations[key]) for key, rms in found.items()]
        return [(found, observations)]

    def _normalize_last(self, infos: list[dict[str, Any]]) -> None:
        """Replace the last observation of each episode by the normalised one."""
        if not infos:
            return
        last = [info["terminal_observation"] for info in infos]
        if isinstance(last[0], dict):
            stacked: Any = self.normalize_obs({key: _stacked([row[key] for row in last]) for key in last[0]})
            rows: Any = ({key: values[index] for key, values in stacked.items()} for index in range(len(last)))
        else:
            rows = self.normalize_obs(_stacked(last))
        for info, row in zip(infos, rows, strict=True):
            info["terminal_observation"] = row

    def _normalize_obs(self, obs: np.ndarray, obs_rms: RunningMeanStd) -> np.ndarray:
        # SB3's numbers, in one array: of two types each operation takes longer
        scaled = np.array(obs, np.float64)
        scaled -= obs_rms.mean
        scaled /= np.sqrt(obs_rms.var + self.epsilon)
        # What does not fit is clipped
        with np.errstate(over="ignore"):
            small = scaled.astype(np.float32)
            return np.clip(small, -self.clip_obs, self.clip_obs, out=small)

    def normalize_obs(self, obs: Observations) -> Observations:
        """
        Normalise observations; the statistics stay.

        :param obs: one or several
        :return: arrays of their own
        """
        keys = (self.norm_obs_keys or []) if self.norm_obs else []
        if isinstance(obs, dict):
            found: Any = self.obs_rms if keys else {}
            return {key: self._normalize_obs(rows, found[key]) if key in keys else np.copy(rows) for key, rows in obs.items()}
        if not self.norm_obs:
            return np.copy(obs)
        assert isinstance(self.obs_rms, RunningMeanStd)
        return self._normalize_obs(obs, self.obs_rms)

    @staticmethod
    def load(load_path: str, venv: VecEnv) -> "FastVecNormalize":
        """
        Load statistics and settings that this class or SB3's ``VecNormalize`` saved.

        :param load_path: the file
        :param venv: what to wrap
        :return: the wrapper around it
        """
        with open(load_path, "rb") as file:
            saved = pickle.load(file)
        if not isinstance(saved, VecNormalize):
            raise ValueError(f"load_path must hold a VecNormalize, got a {type(saved).__name__}")
        saved.__class__ = FastVecNormalize
        assert isinstance(saved, FastVecNormalize)
        saved.set_venv(venv)
        return saved

    def save(self, save_path: str) -> None:
        """
        Save statistics and settings as SB3's ``VecNormalize`` does.

        :param save_path: the file
        """
        plain = VecNormalize.__new__(VecNormalize)
        vars(plain).update(vars(self))
        with open(save_path, "wb") as file:
            pickle.dump(plain, file)
