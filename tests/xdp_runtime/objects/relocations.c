// CO-RE relocations of every kind clang makes: fields, bit fields, arrays, types, enumerators, flavours;
// what no kernel has, asked for first; and (reached) what no kernel has, used without asking.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define P __attribute__((preserve_access_index))
struct list_head { struct list_head *next, *prev; } P;
struct task_struct { int pid; int tgid; char comm[16]; struct task_struct *parent; struct task_struct *group_leader;
  unsigned int in_execve : 1; unsigned int sched_contributes_to_load:1; struct list_head tasks; long nope; } P;
struct task_struct___flav { int tgid; } P;
struct net_device { unsigned int mtu; int ifindex; char name[16]; unsigned long state; unsigned char addr_len; } P;
struct sk_buff { unsigned int len, data_len; unsigned char pkt_type:3; unsigned char cloned:1; unsigned short transport_header; unsigned int mark;} P;
struct no_such { int a; } P;
struct iphdr { unsigned char ihl:4, version:4; unsigned char tos; unsigned short tot_len; } P;
enum bpf_map_type___z { BPF_MAP_TYPE_HASH___z = 77, BPF_MAP_TYPE_NOWAY=5 };
enum bpf_map_type___x { BPF_MAP_TYPE_ARRAY___y = 7, };
enum nono { NONO_A };
typedef int (*no_cb)(int);
typedef unsigned int pid_tt;
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 64); __type(key,int); __type(value,long);} out SEC(".maps");
static __always_inline void put(int k, long v){ bpf_map_update_elem(&out,&k,&v,0); }
SEC("xdp") int core(struct xdp_md *c)
{
  struct task_struct *t = (void*)0;
  struct net_device *d = (void*)0; struct sk_buff *s = (void*)0;
  put(0, (long)&t->pid); put(1,(long)&t->comm[3]); put(2,(long)&d->name[2]);
  put(3, bpf_core_field_exists(t->nope)); put(4, bpf_core_field_exists(t->tgid));
  put(5, bpf_core_field_size(t->comm)); put(6, bpf_core_field_size(d->addr_len));
  put(7, bpf_core_type_exists(struct no_such)); put(8, bpf_core_type_exists(struct task_struct));
  put(9, bpf_core_type_size(struct sk_buff)); put(10, bpf_core_type_size(struct no_such));
  put(11, bpf_core_enum_value(enum bpf_map_type___z, BPF_MAP_TYPE_HASH___z));
  put(12, bpf_core_enum_value_exists(enum bpf_map_type___z, BPF_MAP_TYPE_NOWAY));
  put(13, bpf_core_enum_value(enum bpf_map_type___x, BPF_MAP_TYPE_ARRAY___y));
  put(14, bpf_core_type_id_local(struct task_struct)); put(15, bpf_core_type_id_kernel(struct task_struct));
  put(16, bpf_core_type_id_kernel(struct no_such));
  put(17, __builtin_preserve_field_info(t->in_execve, BPF_FIELD_BYTE_OFFSET));
  put(18, __builtin_preserve_field_info(t->in_execve, BPF_FIELD_LSHIFT_U64));
  put(19, __builtin_preserve_field_info(t->in_execve, BPF_FIELD_RSHIFT_U64));
  put(20, __builtin_preserve_field_info(t->in_execve, BPF_FIELD_SIGNED));
  put(21, __builtin_preserve_field_info(s->cloned, BPF_FIELD_BYTE_OFFSET));
  put(22, __builtin_preserve_field_info(s->cloned, BPF_FIELD_BYTE_SIZE));
  put(23, __builtin_preserve_field_info(s->cloned, BPF_FIELD_LSHIFT_U64));
  put(24, __builtin_preserve_field_info(t->pid, BPF_FIELD_SIGNED));
  put(25, (long)&((struct task_struct___flav*)t)->tgid);
  put(26, (long)&t->tasks.prev);
  put(27, bpf_core_enum_value_exists(enum nono, NONO_A));
  put(28, __builtin_preserve_field_info(t->pid, BPF_FIELD_LSHIFT_U64));
  put(29, bpf_core_type_exists(pid_tt)); put(30, bpf_core_type_exists(no_cb));
  put(31, __builtin_preserve_field_info(((struct iphdr*)0)->version, BPF_FIELD_LSHIFT_U64));
  put(32, __builtin_preserve_field_info(((struct iphdr*)0)->version, BPF_FIELD_RSHIFT_U64));
  if (bpf_core_field_exists(t->nope)) put(33, (long)&t->nope);
  if (bpf_core_type_exists(struct no_such)) put(34, (long)&((struct no_such*)0)->a + bpf_core_enum_value(enum nono, NONO_A));
  { struct sk_buff *q = (void*)(long)c->data; struct iphdr *ip = q; if ((void*)q + 2000 <= (void*)(long)c->data_end) { put(35, q->len); put(36, q->transport_header); q->mark = 7; put(37, ip->tot_len); } }
  return 2;
}

SEC("xdp") int reached(struct xdp_md *c)
{
	struct no_such *none = (void *)0;

	return (long)&none->a;
}

char LICENSE[] SEC("license") = "GPL";
